//! The agent while nft hangs, fails or is missing, at the start or later: status and log name the failure, and everything that does not
//! need nft works.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::lab::{Node, ROUTED, wait_for};

/// The behaviour of nft.
#[derive(Clone, Copy, PartialEq)]
enum Nft {
    Works,
    Hangs,
    Fails,
    Missing,
}

use Nft::{Fails, Hangs, Missing, Works};

impl Nft {
    /// The beginning of the message in the status.
    fn message(self) -> &'static str {
        match self {
            Works => "",
            Hangs => "nft -s list table inet netweft has not ended within 10s and was killed",
            Fails => "nft -s list table inet netweft: Error: made to fail",
            Missing => "run nft -s list table inet netweft: No such file or directory",
        }
    }
}

fn find_in_path(program: &str) -> PathBuf {
    std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|folder| folder.join(program))
        .find(|file| file.exists())
        .unwrap()
}

/// Replaces nft. A running agent lists the table inet first: the new behaviour begins with it, so that one reconcile meets one behaviour.
fn replace_nft(node: &Node, nft: Nft) {
    let file = node.path("programs/nft");
    let works = format!("exec {} \"$@\"", find_in_path("nft").display());
    let (begun, file_name) = (node.path("nft-replaced"), file.display());
    let begin = match nft {
        Works => String::new(),
        // The next listing finds no program.
        Missing => format!(
            "case \"$*\" in *'table bridge'*) {} {file_name};; esac",
            find_in_path("rm").display()
        ),
        Hangs | Fails => format!(
            "case \"$*\" in *'table inet'*) : >{begun};; esac; [ -e {begun} ] || {works}",
            begun = begun.display()
        ),
    };
    let then = match nft {
        Works | Missing => works,
        // A child of the shell, which the agent has to kill, too.
        Hangs => format!("{} 1000", find_in_path("sleep").display()),
        Fails => "echo Error: made to fail >&2; exit 1".to_owned(),
    };
    drop(fs::remove_file(begun));
    let temporary = node.path("nft-temporary");
    fs::write(&temporary, format!("#!/bin/sh\n{begin}\n{then}\n")).unwrap();
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(temporary, file).unwrap();
}

/// A node with this nft as the only program in the PATH of the agent.
fn node(nft: Nft) -> Node {
    let mut node = Node::new(ROUTED);
    fs::create_dir(node.path("programs")).unwrap();
    if nft != Missing {
        replace_nft(&node, nft);
    }
    let path = format!("PATH={}", node.path("programs").display());
    node.start_under(&["env", &path]);
    node
}

fn http_status(node: &Node, path: &str) -> String {
    node.namespace.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9471").unwrap();
        write!(stream, "GET /{path} HTTP/1.0\r\n\r\n").unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).unwrap();
        response["HTTP/1.0 ".len()..][..3].to_owned()
    })
}

/// The number of log lines with these texts, except for those of the task that checks firewalls.
fn lines(node: &Node, words: [&str; 2]) -> usize {
    let log = node.log();
    let of_loop = log
        .lines()
        .filter(|line| !line.contains("detect firewalls that drop packets of pods"));
    let about = of_loop.filter(|line| words.iter().all(|words| line.contains(words)));
    about.count()
}

/// Adds a block of another node.
fn add_remote_block(node: &Node) {
    node.write_object(
        "subnet-late.yaml",
        "kind: NodeSubnet\nmetadata: {name: late}\nspec: {cidr: 10.244.64.0/22, pool: routed, node: late, nodeAddresses: {ipv4: 192.0.2.9}, state: Active}",
    );
}

fn wait_for_route(node: &Node, block: &str) {
    wait_for("a route to another node's block", || {
        let route = node.namespace.ip(&format!("route show {block}"));
        route.contains("dev nw-vx4096").then_some(()).ok_or(route)
    });
}

fn reports_failure_at_start(nft: Nft) {
    let node = node(nft);
    let message = node.wait_for_reason("ProgrammingFailed");
    assert!(message.starts_with(nft.message()), "{message}");
    wait_for_route(&node, "10.244.4.0/22");
    assert_eq!(lines(&node, ["failing, will retry", nft.message()]), 1);
    assert_eq!(lines(&node, ["no longer failing", nft.message()]), 0);
    assert_eq!(
        (http_status(&node, "livez"), http_status(&node, "readyz")),
        ("200".into(), "503".into())
    );
    assert!(!node.path("cni/10-netweft.conflist").exists());
    replace_nft(&node, Works);
    node.wait_until_ready();
    assert_eq!(
        lines(&node, ["failing, will retry", nft.message()]),
        1,
        "{}",
        node.log()
    );
    assert_eq!(
        lines(&node, ["no longer failing", nft.message()]),
        1,
        "{}",
        node.log()
    );
}

fn reports_later_failure(nft: Nft) {
    let node = node(Works);
    node.wait_until_ready();
    replace_nft(&node, nft);
    add_remote_block(&node);
    wait_for_route(&node, "10.244.64.0/22");
    let message = node.wait_for_reason("ProgrammingFailed");
    assert!(message.starts_with(nft.message()), "{message}");
    assert_eq!(lines(&node, ["failing, will retry", nft.message()]), 1);
    // The agent stays ready for some minutes, and pods work.
    assert_eq!(
        (http_status(&node, "livez"), http_status(&node, "readyz")),
        ("200".into(), "200".into())
    );
    assert!(node.add("one").is_reachable_from(&node.namespace));
    replace_nft(&node, Works);
    node.wait_until_ready();
    assert_eq!(
        lines(&node, ["no longer failing", nft.message()]),
        1,
        "{}",
        node.log()
    );
}

#[test]
fn netns_hung_nft_at_start_is_reported_and_routes_are_added() {
    reports_failure_at_start(Hangs);
}

#[test]
fn netns_hung_nft_later_is_reported_and_changes_are_applied() {
    reports_later_failure(Hangs);
}

#[test]
fn netns_failing_nft_is_named_in_status_and_log() {
    reports_failure_at_start(Fails);
    reports_later_failure(Fails);
}

#[test]
fn netns_missing_nft_is_named_in_status_and_log() {
    reports_failure_at_start(Missing);
    reports_later_failure(Missing);
}
