//! A request to an API server that becomes unreachable fails in time.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Config};
use netweft_client::CONNECTION_TIMEOUT;
use netweft_netstate::netns;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let program = words.next().expect(line);
    let status = Command::new(program).args(words).status().expect(program);
    assert!(status.success(), "{line}");
}

/// Accepts a request, and then drops all packets.
async fn become_unreachable(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut bytes = [0; 16];
    assert!(stream.read(&mut bytes).await.unwrap() > 0);
    for line in [
        "nft add table inet lost",
        "nft add chain inet lost input { type filter hook input priority 0; policy drop; }",
    ] {
        run(line);
    }
    std::future::pending::<()>().await;
}

#[test]
fn netns_request_to_unreachable_api_server_fails_in_time() {
    let test = || {
        run("ip link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let url = format!("http://{}", listener.local_addr().unwrap());
            let client = netweft_client::client(Config::new(url.parse().unwrap())).unwrap();
            let nodes: Api<Node> = Api::all(client);
            let started = Instant::now();
            let limit = CONNECTION_TIMEOUT * 10;
            let response = tokio::select! {
                response = tokio::time::timeout(limit, nodes.get("one")) => response,
                () = become_unreachable(listener) => unreachable!("never ends"),
            };
            response.expect("the request fails").unwrap_err();
            let duration = started.elapsed();
            println!("failed after {duration:?}");
            assert!(
                duration > Duration::from_secs(5),
                "the request must not fail before the keepalive probes"
            );
        });
    };
    netns::run_in_new("run a test", test).unwrap();
}
