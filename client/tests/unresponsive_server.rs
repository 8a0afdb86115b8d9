//! A host that vanishes is noticed, though nobody says so.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic")]

use std::process::Command;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, Config};
use netweft_client::GIVEN_UP;
use netweft_netstate::netns;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

fn run(line: &str) {
    let mut words = line.split_whitespace();
    let program = words.next().expect(line);
    let status = Command::new(program).args(words).status().expect(program);
    assert!(status.success(), "{line}");
}

/// Somebody who takes a request, whose packets then get lost.
async fn vanish(listener: TcpListener) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut some = [0; 16];
    assert!(stream.read(&mut some).await.unwrap() > 0);
    for line in [
        "nft add table inet lost",
        "nft add chain inet lost input { type filter hook input priority 0; policy drop; }",
    ] {
        run(line);
    }
    std::future::pending::<()>().await;
}

#[test]
fn netns_vanished_api_server_fails_request_in_time() {
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
            let asked = Instant::now();
            let answer = tokio::select! {
                answer = tokio::time::timeout(GIVEN_UP * 10, nodes.get("one")) => answer,
                () = vanish(listener) => unreachable!("it waits"),
            };
            answer.expect("it is noticed").unwrap_err();
            let took = asked.elapsed();
            println!("noticed after {took:?}");
            assert!(
                took > Duration::from_secs(5),
                "a host that answers is not given up"
            );
        });
    };
    netns::run_in_new("run a test", test).unwrap();
}
