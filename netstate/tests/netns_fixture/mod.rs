//! Isolated network namespaces for tests, and the tools of iproute2 in them.

use std::future::Future;
use std::io::Write;
use std::process::Command;

use netweft_netstate::netns;

/// Runs a test in a new namespace, on a new thread.
pub fn in_netns<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    if std::env::var_os("NETWEFT_SKIP_NETNS").is_some_and(|value| value == "1") {
        eprintln!("skipped: NETWEFT_SKIP_NETNS=1");
        return;
    }
    netns::run_in_new("run a test", || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(test());
    })
    .expect("these tests create network namespaces: run them as root, or set NETWEFT_SKIP_NETNS=1");
}

/// Runs `ip` in the namespace of this thread.
pub fn ip(arguments: &str) -> String {
    let output = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip of iproute2");
    assert!(
        output.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Lines for `ip -batch` that add and delete at most four thousand objects. Objects with another `second` are distinct.
pub fn churn_lines(kind: &str, second: u8, count: u32) -> String {
    let ipv4 = |n: u32| format!("10.{second}.{}.{}", n / 256, n % 256);
    let line = |verb: &str, n: u32| match kind {
        "route" => format!("route {verb} {} dev nw-br proto 4 metric 7\n", ipv4(n)),
        "route6" => format!("route {verb} fd00:{second}::{n:x} dev nw-br proto 4 metric 7\n"),
        // For bridge(8).
        "fdb" => {
            let verb = if verb == "delete" { "del" } else { verb };
            format!(
                "fdb {verb} 02:00:00:{second:02x}:{:02x}:{:02x} dev nw-vx dst 10.1.1.1\n",
                n / 256,
                n % 256
            )
        }
        "address" => format!("address {verb} {}/32 dev nw-br\n", ipv4(n)),
        "neighbour" => {
            let (high, low) = (n / 256, n % 256);
            let mac = format!("02:00:00:{second:02x}:{high:02x}:{low:02x}");
            format!(
                "neighbour {verb} {} lladdr {mac} dev nw-br nud permanent\n",
                ipv4(n)
            )
        }
        kind => panic!("{kind}"),
    };
    (0..count)
        .map(|n| line("add", n))
        .chain((0..count).map(|n| line("delete", n)))
        .collect()
}

/// Runs lines for `ip -batch` or `bridge -batch`.
pub fn batch(lines: &str) {
    let program = if lines.starts_with("fdb") {
        "bridge"
    } else {
        "ip"
    };
    let mut child = Command::new(program)
        .args(["-batch", "-"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(lines.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
}
