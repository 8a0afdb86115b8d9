//! A node in a network namespace: uplink, objects in a directory, agent, plugin, pods.

#[path = "../../../cni/tests/netns_node/namespace.rs"]
mod namespace;
mod objects;
mod pod;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use netweft_cni::attachment::{Attachment, Store};
use netweft_crds::NodeNetworkStatus;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::rtnl::Rtnl;
use serde_json::Value;
use tempfile::TempDir;

pub use namespace::Namespace;
use objects::objects;
pub use objects::{BOTH, BRIDGED, FAMILIES, Families, Pools, ROUTED, network};
pub use pod::Pod;

/// Time limit of polling. The polled conditions take much less.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Polls until the attempt succeeds.
pub fn wait_for<T>(event: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(result) => return result,
            Err(error) => assert!(Instant::now() < end, "waiting for {event}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The command line of strace that sends a signal to the traced program at call number `at` of the system calls.
pub fn strace(syscalls: &str, signal: &str, at: usize) -> Vec<String> {
    // -f: all threads of the program.
    let mut command: Vec<String> = ["strace", "-f", "-qq", "-o", "/dev/null"]
        .map(str::to_owned)
        .into();
    for expression in [
        format!("trace={syscalls}"),
        format!("inject={syscalls}:signal={signal}:when={at}"),
    ] {
        command.extend(["-e".to_owned(), expression]);
    }
    command
}

impl Namespace {
    /// Whether a reply arrives within five seconds. On a busy machine the first packet is sometimes lost with IPv6, right after the
    /// first sync and ADD, for an unknown cause.
    pub fn pings(&self, ip: &str) -> bool {
        let ping = self.command(&format!("ping -c 1 -i 0.2 -w 5 {ip}"));
        ping.status.success()
    }

    /// The state of the kernel, as the agent reads it.
    pub fn state(&self) -> NetworkState {
        self.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            runtime
                .unwrap()
                .block_on(async { Rtnl::new().unwrap().read().await.unwrap() })
        })
    }
}

/// A node on which an agent can be started.
pub struct Node {
    pub namespace: Namespace,
    pools: Pools,
    dir: TempDir,
    agent: Option<Child>,
    /// Whether the plugin is run from the directory that `install` writes, instead of the build directory.
    pub installed: bool,
}

impl Node {
    pub fn new(pools: Pools) -> Self {
        let namespace = Namespace::new();
        namespace.ip("link set lo up");
        namespace.ip("link add ens7 mtu 1400 type veth peer name far0 mtu 1400");
        namespace.ip("link set ens7 addrgenmode none up");
        namespace.ip("link set far0 addrgenmode none up");
        if pools.families != Families::Ipv6 {
            namespace.ip("address add 192.0.2.1/24 dev ens7");
        }
        if pools.families != Families::Ipv4 {
            namespace.ip("address add 2001:db8::1/64 dev ens7 nodad");
        }
        // In memory, like /run.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let node = Self {
            namespace,
            pools,
            dir,
            agent: None,
            installed: false,
        };
        fs::create_dir(node.path("objects")).unwrap();
        for (name, text) in objects(pools) {
            node.write_object(&name, &text);
        }
        node
    }

    /// Writes an object for the agent, atomically.
    pub fn write_object(&self, name: &str, text: &str) {
        let (temporary, file) = (self.path("temporary"), self.path("objects").join(name));
        fs::write(
            &temporary,
            format!("apiVersion: netweft.io/v1alpha1\n{text}\n"),
        )
        .unwrap();
        fs::rename(temporary, file).unwrap();
    }

    /// The node's own addresses.
    pub fn addresses(&self) -> &'static [&'static str] {
        match self.pools.families {
            Families::Ipv4 => &["192.0.2.1"],
            Families::Ipv6 => &["2001:db8::1"],
            Families::Both => &["192.0.2.1", "2001:db8::1"],
        }
    }

    /// A node with a ready agent.
    pub fn ready(pools: Pools) -> Self {
        let mut node = Self::new(pools);
        node.start();
        node.wait_until_ready();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The agent's command line.
    pub fn agent_arguments(&self) -> Vec<String> {
        let mut arguments = vec![env!("CARGO_BIN_EXE_netweft-agent").to_owned(), "run".into()];
        for (flag, value) in [
            ("--node", "one".to_owned()),
            ("--inputs", self.path("objects").display().to_string()),
            ("--run-dir", self.path("run").display().to_string()),
            ("--cni-conf-dir", self.path("cni").display().to_string()),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments
    }

    pub fn spawn(&self, arguments: &[String]) -> Child {
        let log = fs::File::options()
            .append(true)
            .create(true)
            .open(self.path("log"))
            .unwrap();
        self.namespace.run(|| {
            Command::new(&arguments[0])
                .args(&arguments[1..])
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .expect(&arguments[0])
        })
    }

    pub fn start(&mut self) {
        self.start_under(&[]);
    }

    /// Starts the agent by a wrapper that executes it.
    pub fn start_under(&mut self, wrapper: &[&str]) {
        let mut arguments: Vec<String> = wrapper.iter().map(ToString::to_string).collect();
        arguments.extend(self.agent_arguments());
        self.agent = Some(self.spawn(&arguments));
    }

    pub fn agent_id(&self) -> u32 {
        self.agent.as_ref().unwrap().id()
    }

    /// Kills the agent by SIGKILL.
    pub fn kill_agent(&mut self) {
        if let Some(mut agent) = self.agent.take() {
            agent.kill().unwrap();
            agent.wait().unwrap();
        }
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    pub fn status(&self) -> Result<NodeNetworkStatus, String> {
        let text = fs::read_to_string(self.path("run/status.yaml")).map_err(|e| e.to_string())?;
        serde_saphyr::from_str(&text).map_err(|error| error.to_string())
    }

    /// The message of the condition Ready, if it is True.
    pub fn is_ready(&self) -> Result<String, String> {
        let conditions = self.status()?.conditions;
        let ready = conditions.into_iter().find(|one| one.type_ == "Ready");
        match ready {
            Some(ready) if ready.status == "True" => Ok(ready.message),
            other => Err(format!("{other:?}\n{}", self.log())),
        }
    }

    /// Waits until Ready is False with this reason, and returns the message.
    pub fn wait_for_reason(&self, reason: &str) -> String {
        wait_for(reason, || {
            let conditions = self.status()?.conditions;
            let mut ready = conditions.into_iter().filter(|one| one.type_ == "Ready");
            match ready.next() {
                Some(ready) if ready.status == "False" && ready.reason == reason => {
                    Ok(ready.message)
                }
                other => Err(format!("{other:?}\n{}", self.log())),
            }
        })
    }

    /// Makes the agent reconcile although no object has changed.
    pub fn trigger_reconcile(&self) {
        self.namespace.ip("link add trigger type bridge");
        self.namespace.ip("link delete trigger");
    }

    pub fn wait_until_ready(&self) {
        wait_for("the agent to be ready", || self.is_ready());
    }

    pub fn store(&self) -> Store {
        Store::new(&self.path("run"))
    }

    /// Each attachment once.
    pub fn attachments(&self) -> Vec<Attachment> {
        let mut found: Vec<Attachment> = Vec::new();
        for record in self.store().list().unwrap().into_values().flatten() {
            if !found.contains(&record) {
                found.push(record);
            }
        }
        found
    }

    /// The network configuration that the runtime passes to the plugin.
    fn configuration(&self) -> Value {
        let text = fs::read_to_string(self.path("cni/10-netweft.conflist")).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        let mut conf = list["plugins"][0].clone();
        for key in ["cniVersion", "name"] {
            conf[key] = list[key].clone();
        }
        conf
    }

    /// Starts the plugin, optionally by a wrapper.
    pub fn plugin(&self, wrapper: &[&str], command: &str, container: &str, netns: &str) -> Child {
        self.start_plugin(wrapper, &self.configuration(), [command, container, netns])
    }

    /// Starts ADD for a pod with this annotation.
    pub fn add_annotated(&self, annotation: (&str, &str), container: &str, netns: &str) -> Child {
        let mut conf = self.configuration();
        let capability = "io.kubernetes.cri.pod-annotations";
        assert_eq!(conf["capabilities"][capability], true);
        conf["runtimeConfig"][capability][annotation.0] = annotation.1.into();
        self.start_plugin(&[], &conf, ["ADD", container, netns])
    }

    fn start_plugin(&self, wrapper: &[&str], conf: &Value, call: [&str; 3]) -> Child {
        let [command, container, netns] = call;
        let plugin = if self.installed {
            self.path("bin/netweft")
        } else {
            built_plugin()
        };
        let plugin = plugin.display().to_string();
        let words: Vec<&str> = wrapper.iter().copied().chain([plugin.as_str()]).collect();
        let arguments = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}");
        let mut child = self.namespace.run(|| {
            Command::new(words[0])
                .args(&words[1..])
                .env("CNI_COMMAND", command)
                .env("CNI_CONTAINERID", container)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", "/opt/cni/bin")
                .env("CNI_ARGS", arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the plugin is in the directory of the agent: build the workspace")
        });
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, conf.to_string().as_bytes()).unwrap();
        child
    }

    /// Installs the plugins of a directory.
    pub fn install(&self, from: &Path) {
        let install = Command::new(env!("CARGO_BIN_EXE_netweft-agent"))
            .arg("install")
            .arg("--from")
            .arg(from)
            .arg("--to")
            .arg(self.path("bin"))
            .output()
            .unwrap();
        assert!(install.status.success(), "{install:?}");
    }

    pub fn add(&self, container: &str) -> Pod {
        let space = Namespace::new();
        let add = self.plugin(&[], "ADD", container, &space.path());
        Pod::of(container, space, add)
            .unwrap_or_else(|error| panic!("ADD {container}: {error}\n{}", self.log()))
    }

    pub fn del(&self, pod: &Pod) {
        let netns = pod.space.path();
        let del = self.plugin(&[], "DEL", &pod.container, &netns);
        assert!(del.wait_with_output().unwrap().status.success());
    }

    /// The output and the exit code of `netweft-agent check`.
    pub fn check(&self) -> (Vec<String>, Option<i32>) {
        let output = self.namespace.run(|| {
            Command::new(env!("CARGO_BIN_EXE_netweft-agent"))
                .arg("check")
                .arg("--run-dir")
                .arg(self.path("run"))
                .output()
                .unwrap()
        });
        let text = String::from_utf8(output.stdout).unwrap();
        let code = ExitStatus::code(&output.status);
        (text.lines().map(str::to_owned).collect(), code)
    }

    /// Waits until the check finds no problem, and returns how long that took.
    pub fn wait_until_clean(&self) -> Duration {
        let started = Instant::now();
        wait_for("the node to be clean", || match self.check() {
            (_, Some(0)) => Ok(()),
            (problems, code) => Err(format!("{code:?}: {problems:#?}")),
        });
        started.elapsed()
    }
}

/// The plugin in the build directory.
pub fn built_plugin() -> PathBuf {
    let agent = Path::new(env!("CARGO_BIN_EXE_netweft-agent"));
    agent.with_file_name("netweft")
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_agent();
    }
}
