//! A node and pods made of network namespaces without a way out, held by descriptors alone, and the real plugin binary.

use std::any::Any;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use ipnet::IpNet;
use netweft_cni::node::{NodeConfig, PodInterface, PoolConfig, VERSION};
use netweft_netstate::netns;
use serde_json::{Value, json};

/// Whether the tests that need namespaces are switched off.
pub fn skipped() -> bool {
    let skipped = std::env::var_os("NETWEFT_SKIP_NETNS").is_some_and(|value| value == "1");
    if skipped {
        eprintln!("skipped: NETWEFT_SKIP_NETNS=1");
    }
    skipped
}

/// One network namespace.
pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn new() -> Self {
        let made = netns::create();
        Self(made.expect("these tests make network namespaces: run as root, or skip them with NETWEFT_SKIP_NETNS=1"))
    }

    /// A path that other processes can open while this one lives.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        netns::run_in(self.0.as_fd(), "run a test", work).unwrap()
    }

    pub fn command(&self, line: &str) -> Output {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.run(|| {
            Command::new(words[0])
                .args(&words[1..])
                .output()
                .expect(line)
        })
    }

    pub fn ip(&self, arguments: &str) -> String {
        let output = self.command(&format!("ip {arguments}"));
        assert!(
            output.status.success(),
            "ip {arguments}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn pings(&self, ip: &str) -> bool {
        self.command(&format!("ping -c 1 -W 2 {ip}"))
            .status
            .success()
    }

    pub fn set(&self, sysctl: &str, value: &str) {
        self.run(|| std::fs::write(Path::new("/proc/sys").join(sysctl), value).unwrap());
    }
}

/// What the plugin answered.
#[derive(Debug)]
pub struct Answer {
    pub success: bool,
    pub json: Value,
    /// What stands on standard error.
    pub log: String,
}

impl Answer {
    pub fn of(output: &Output) -> Self {
        let success = output.status.success();
        let text = String::from_utf8(output.stdout.clone()).unwrap();
        let json = if text.is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&text).expect(&text)
        };
        let log = String::from_utf8(output.stderr.clone()).unwrap();
        let answer = Self { success, json, log };
        assert!(
            success || !answer.log.is_empty(),
            "a failure says more on standard error"
        );
        answer
    }

    pub fn code(&self) -> u64 {
        assert!(!self.success, "{self:?}");
        self.json["code"].as_u64().unwrap()
    }

    pub fn message(&self) -> &str {
        self.json["msg"].as_str().unwrap()
    }

    /// Addresses without their lengths.
    pub fn ips(&self) -> Vec<String> {
        assert!(self.success, "{self:?}");
        let ips = self.json["ips"].as_array().unwrap().iter();
        ips.map(|ip| {
            ip["address"]
                .as_str()
                .unwrap()
                .parse::<IpNet>()
                .unwrap()
                .addr()
                .to_string()
        })
        .collect()
    }
}

/// A node with the plugin.
pub struct Node {
    pub namespace: Namespace,
    run_dir: PathBuf,
    /// Keeps the directory until the node ends.
    _keeper: Box<dyn Any + Send + Sync>,
}

impl Node {
    /// A node that forwards, has two addresses of its own and these blocks in one pool.
    pub fn new(blocks: &[&str]) -> Self {
        let node = Self::without_config();
        node.configure(&[pool("default", blocks)]);
        node
    }

    /// With a block that has room for two pods: 10.244.0.2 and 10.244.0.3.
    pub fn for_two_pods() -> Self {
        let node = Self::without_config();
        node.configure(&[PoolConfig {
            reserved: vec!["10.244.0.4/30".parse().unwrap()],
            ..pool("default", &["10.244.0.0/29"])
        }]);
        node
    }

    pub fn without_config() -> Self {
        // In memory, as /run is.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        Self::in_dir(dir.path().to_owned(), Box::new(dir))
    }

    /// A node whose state is in `run_dir`.
    pub fn in_dir(run_dir: PathBuf, keeper: Box<dyn Any + Send + Sync>) -> Self {
        let namespace = Namespace::new();
        namespace.ip("link set lo up");
        namespace.ip("address add 192.0.2.1/32 dev lo");
        namespace.ip("address add 2001:db8::1/128 dev lo nodad");
        namespace.set("net/ipv4/ip_forward", "1");
        namespace.set("net/ipv6/conf/all/forwarding", "1");
        Self {
            namespace,
            run_dir,
            _keeper: keeper,
        }
    }

    pub fn configure(&self, pools: &[PoolConfig]) {
        NodeConfig {
            version: VERSION,
            pools: pools.to_vec(),
            withdrawn: Vec::new(),
            namespaces: None,
        }
        .write(&self.run_dir)
        .unwrap();
    }

    pub fn run_dir(&self) -> &Path {
        &self.run_dir
    }

    pub fn attachments(&self) -> PathBuf {
        self.run_dir().join("attachments")
    }

    /// Names in the directory of attachments, hidden ones included.
    pub fn records(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.attachments()) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// Everything on the node that a pod could have left.
    pub fn leftovers(&self) -> Vec<String> {
        let mut found = self.records();
        let links = self.namespace.ip("-oneline link show");
        found.extend(
            links
                .lines()
                .filter(|line| !line.contains(": lo:"))
                .map(str::to_owned),
        );
        for table in [
            "route show",
            "-6 route show proto 79",
            "neighbour show nud permanent",
            "-6 neighbour show nud permanent",
        ] {
            found.extend(self.namespace.ip(table).lines().map(str::to_owned));
        }
        found
    }

    pub fn conf(&self) -> Value {
        json!({ "cniVersion": "1.1.0", "name": "netweft", "type": "netweft", "runDir": self.run_dir })
    }

    /// Starts the plugin with this environment on top of the command and hands it its input.
    pub fn start(&self, command: &str, environment: &[(&str, &str)], input: &str) -> Child {
        fed(self.spawn(command, environment), input)
    }

    /// Starts the plugin, which waits for its input.
    pub fn spawn(&self, command: &str, environment: &[(&str, &str)]) -> Child {
        self.spawn_through(&[], command, environment)
    }

    /// Starts the plugin by another program, which gets it as its last argument.
    fn spawn_through(
        &self,
        through: &[&str],
        command: &str,
        environment: &[(&str, &str)],
    ) -> Child {
        let words = [through, &[env!("CARGO_BIN_EXE_netweft")]].concat();
        self.namespace.run(|| {
            Command::new(words[0])
                .args(&words[1..])
                .env_clear()
                .env("CNI_COMMAND", command)
                .env("CNI_PATH", "/opt/cni/bin")
                .envs(environment.iter().copied())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
    }

    pub fn raw(&self, command: &str, environment: &[(&str, &str)], input: &str) -> Answer {
        self.raw_through(&[], command, environment, input)
    }

    /// Runs the plugin by another program.
    pub fn raw_through(
        &self,
        through: &[&str],
        command: &str,
        environment: &[(&str, &str)],
        input: &str,
    ) -> Answer {
        let child = fed(self.spawn_through(through, command, environment), input);
        Answer::of(&child.wait_with_output().unwrap())
    }

    pub fn call(&self, command: &str, container: &str, netns: &str, conf: &Value) -> Answer {
        self.raw(command, &environment(container, netns), &conf.to_string())
    }

    pub fn add(&self, container: &str, pod: &Namespace) -> Answer {
        self.call("ADD", container, &pod.path(), &self.conf())
    }

    pub fn del(&self, container: &str, netns: &str) -> Answer {
        self.call("DEL", container, netns, &self.conf())
    }

    pub fn check(&self, container: &str, pod: &Namespace, result: &Answer) -> Answer {
        let mut conf = self.conf();
        conf["prevResult"] = result.json.clone();
        self.call("CHECK", container, &pod.path(), &conf)
    }
}

fn fed(mut child: Child, input: &str) -> Child {
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, input.as_bytes()).unwrap();
    child
}

/// What a runtime sets for a pod's first link.
pub fn environment<'a>(container: &'a str, netns: &'a str) -> [(&'a str, &'a str); 4] {
    let arguments =
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=1-2-3";
    [
        ("CNI_CONTAINERID", container),
        ("CNI_NETNS", netns),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", arguments),
    ]
}

pub fn pool(name: &str, blocks: &[&str]) -> PoolConfig {
    PoolConfig {
        name: name.to_owned(),
        cidr: None,
        pod_interface: PodInterface::Routed,
        bridge: None,
        mtu: 1350,
        blocks: blocks.iter().map(|block| block.parse().unwrap()).collect(),
        reserved: Vec::new(),
        namespaces: None,
        disabled: false,
    }
}
