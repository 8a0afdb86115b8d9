//! A node and pods in isolated network namespaces, and the built plugin binary.

mod namespace;

use std::any::Any;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use ipnet::IpNet;
use netweft_cni::node::{NodeConfig, PodInterface, PoolConfig, VERSION};
use serde_json::{Value, json};

pub use namespace::Namespace;

/// Whether the tests that need network namespaces are disabled (`NETWEFT_SKIP_NETNS=1`).
pub fn skipped() -> bool {
    let skipped = std::env::var_os("NETWEFT_SKIP_NETNS").is_some_and(|value| value == "1");
    if skipped {
        eprintln!("skipped: NETWEFT_SKIP_NETNS=1");
    }
    skipped
}

impl Namespace {
    pub fn pings(&self, ip: &str) -> bool {
        self.command(&format!("ping -c 1 -W 2 {ip}"))
            .status
            .success()
    }

    pub fn set(&self, sysctl: &str, value: &str) {
        self.run(|| std::fs::write(Path::new("/proc/sys").join(sysctl), value).unwrap());
    }
}

/// The result of a run of the plugin.
#[derive(Debug)]
pub struct PluginOutput {
    pub success: bool,
    /// Standard output.
    pub json: Value,
    /// Standard error.
    pub log: String,
}

impl PluginOutput {
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
            "a failure is also on standard error"
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

    /// Addresses without prefix lengths.
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
    /// A node with forwarding, two addresses, and these blocks in one pool.
    pub fn new(blocks: &[&str]) -> Self {
        let node = Self::without_config();
        node.configure(&[pool("default", blocks)]);
        node
    }

    /// A node whose block has addresses for two pods: 10.244.0.2 and 10.244.0.3.
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

    /// Everything on the node that can be left of a pod.
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

    /// Starts the plugin with this command, environment and input.
    pub fn start(&self, command: &str, environment: &[(&str, &str)], input: &str) -> Child {
        write_input(self.spawn(command, environment), input)
    }

    /// Starts the plugin, which waits for its input.
    pub fn spawn(&self, command: &str, environment: &[(&str, &str)]) -> Child {
        self.spawn_with(&[], command, environment)
    }

    /// Starts the plugin by a wrapper, which gets the plugin as its last argument.
    fn spawn_with(&self, wrapper: &[&str], command: &str, environment: &[(&str, &str)]) -> Child {
        let words = [wrapper, &[env!("CARGO_BIN_EXE_netweft")]].concat();
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

    pub fn raw(&self, command: &str, environment: &[(&str, &str)], input: &str) -> PluginOutput {
        self.raw_with(&[], command, environment, input)
    }

    /// Runs the plugin by a wrapper, for example strace.
    pub fn raw_with(
        &self,
        wrapper: &[&str],
        command: &str,
        environment: &[(&str, &str)],
        input: &str,
    ) -> PluginOutput {
        let child = write_input(self.spawn_with(wrapper, command, environment), input);
        PluginOutput::of(&child.wait_with_output().unwrap())
    }

    pub fn call(&self, command: &str, container: &str, netns: &str, conf: &Value) -> PluginOutput {
        self.raw(command, &environment(container, netns), &conf.to_string())
    }

    pub fn add(&self, container: &str, pod: &Namespace) -> PluginOutput {
        self.call("ADD", container, &pod.path(), &self.conf())
    }

    pub fn del(&self, container: &str, netns: &str) -> PluginOutput {
        self.call("DEL", container, netns, &self.conf())
    }

    pub fn check(&self, container: &str, pod: &Namespace, result: &PluginOutput) -> PluginOutput {
        let mut conf = self.conf();
        conf["prevResult"] = result.json.clone();
        self.call("CHECK", container, &pod.path(), &conf)
    }
}

fn write_input(mut child: Child, input: &str) -> Child {
    let mut stdin = child.stdin.take().unwrap();
    std::io::Write::write_all(&mut stdin, input.as_bytes()).unwrap();
    child
}

/// The environment that a runtime sets for the first link of a pod.
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
