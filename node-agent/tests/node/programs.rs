//! What the agent says and does while nft hangs, fails or is missing, from the start or later: the status and the log name it, and
//! what does not need nft goes on.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::lab::{Node, ROUTED, until};

/// What nft is like.
#[derive(Clone, Copy, PartialEq)]
enum Nft {
    Works,
    Hangs,
    Fails,
    Missing,
}

use Nft::{Fails, Hangs, Missing, Works};

impl Nft {
    /// How the sentence of the status begins.
    fn words(self) -> &'static str {
        match self {
            Works => "",
            Hangs => "nft -s list table inet netweft has not ended within 10s and was killed",
            Fails => "nft cannot list the table: Error: made to fail",
            Missing => "run nft -s list table inet netweft: No such file or directory",
        }
    }
}

fn found(program: &str) -> PathBuf {
    std::env::split_paths(&std::env::var_os("PATH").unwrap())
        .map(|folder| folder.join(program))
        .find(|file| file.exists())
        .unwrap()
}

fn make(node: &Node, nft: Nft) {
    let file = node.path("programs/nft");
    let text = match nft {
        Works => format!("exec {} \"$@\"", found("nft").display()),
        // Not in the place of the shell: what a wrapper has started has to end with it.
        Hangs => format!("{} 1000", found("sleep").display()),
        Fails => "echo Error: made to fail >&2; exit 1".to_owned(),
        Missing => return drop(fs::remove_file(file)),
    };
    let aside = node.path("nft-aside");
    fs::write(&aside, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(aside, file).unwrap();
}

/// A node whose agent finds no program but this nft.
fn node(nft: Nft) -> Node {
    let mut node = Node::new(ROUTED);
    fs::create_dir(node.path("programs")).unwrap();
    make(&node, nft);
    let path = format!("PATH={}", node.path("programs").display());
    node.start_under(&["env", &path]);
    node
}

fn answer(node: &Node, path: &str) -> String {
    node.namespace.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:9471").unwrap();
        write!(stream, "GET /{path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer["HTTP/1.0 ".len()..][..3].to_owned()
    })
}

/// Lines of the log with these words, but for those of the task that looks for firewalls.
fn lines(node: &Node, words: [&str; 2]) -> usize {
    let log = node.log();
    let of_loop = log
        .lines()
        .filter(|line| !line.contains("look for firewalls that drop pods' packets"));
    let about = of_loop.filter(|line| words.iter().all(|words| line.contains(words)));
    about.count()
}

/// A block of another node, far from those that there are.
fn join(node: &Node) {
    node.declare(
        "subnet-late.yaml",
        "kind: NodeSubnet\nmetadata: {name: late}\nspec: {cidr: 10.244.64.0/22, pool: routed, node: late, nodeAddresses: {ipv4: 192.0.2.9}, state: Active}",
    );
}

fn has_route(node: &Node, block: &str) {
    until("a route to another node's block", || {
        let route = node.namespace.ip(&format!("route show {block}"));
        route.contains("dev nw-vx4096").then_some(()).ok_or(route)
    });
}

fn from_the_start(nft: Nft) {
    let node = node(nft);
    let said = node.wait_until_it_says("ProgrammingFailed");
    assert!(said.starts_with(nft.words()), "{said}");
    has_route(&node, "10.244.4.0/22");
    assert_eq!(lines(&node, ["failing, will retry", nft.words()]), 1);
    assert_eq!(lines(&node, ["no longer failing", nft.words()]), 0);
    assert_eq!(
        (answer(&node, "livez"), answer(&node, "readyz")),
        ("200".into(), "503".into())
    );
    assert!(!node.path("cni/10-netweft.conflist").exists());
    make(&node, Works);
    node.wait_until_ready();
    assert_eq!(
        lines(&node, ["failing, will retry", nft.words()]),
        1,
        "{}",
        node.log()
    );
    assert_eq!(
        lines(&node, ["no longer failing", nft.words()]),
        1,
        "{}",
        node.log()
    );
}

fn later(nft: Nft) {
    let node = node(Works);
    node.wait_until_ready();
    make(&node, nft);
    join(&node);
    has_route(&node, "10.244.64.0/22");
    let said = node.wait_until_it_says("ProgrammingFailed");
    assert!(said.starts_with(nft.words()), "{said}");
    assert_eq!(lines(&node, ["failing, will retry", nft.words()]), 1);
    // A while is allowed for, and pods go on.
    assert_eq!(
        (answer(&node, "livez"), answer(&node, "readyz")),
        ("200".into(), "200".into())
    );
    assert!(node.add("one").answers(&node.namespace));
    make(&node, Works);
    node.wait_until_ready();
    assert_eq!(
        lines(&node, ["no longer failing", nft.words()]),
        1,
        "{}",
        node.log()
    );
}

#[test]
fn netns_hung_nft_at_start_is_reported_and_routes_are_added() {
    from_the_start(Hangs);
}

#[test]
fn netns_hung_nft_later_is_reported_and_changes_are_applied() {
    later(Hangs);
}

#[test]
fn netns_failing_nft_is_named_in_status_and_log() {
    from_the_start(Fails);
    later(Fails);
}

#[test]
fn netns_missing_nft_is_named_in_status_and_log() {
    from_the_start(Missing);
    later(Missing);
}
