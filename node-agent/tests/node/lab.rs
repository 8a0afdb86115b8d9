//! A node of namespaces: uplink, objects in a folder, agent, plugin, pods.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use netweft_cni::attachment::{Attachment, Store};
use netweft_crds::NodeNetworkStatus;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::model::NetworkState;
use netweft_netstate::netns;
use netweft_netstate::rtnl::Rtnl;
use serde_json::Value;
use tempfile::TempDir;

/// Deadline of whatever is polled for. What it measures takes far less.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// Tries until it works.
pub fn until<T>(what: &str, mut attempt: impl FnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        match attempt() {
            Ok(done) => return done,
            Err(why) => assert!(Instant::now() < end, "waiting for {what}: {why}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// One network namespace.
pub struct Namespace(OwnedFd);

impl Namespace {
    pub fn new() -> Self {
        let made = netns::create();
        Self(made.expect("these tests make network namespaces: run as root"))
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
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "ip {arguments}: {said}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn pings(&self, ip: &str) -> bool {
        let ping = self.command(&format!("ping -c 1 -W 1 {ip}"));
        ping.status.success()
    }

    /// The whole state, as the agent's own library reads it.
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

/// The pools of a node.
pub const ROUTED: &str = "pools: routed";
pub const BRIDGED: &str = "pools: bridged";
pub const BOTH: &str = "pools: both";

/// A node on which an agent can be started.
pub struct Node {
    pub namespace: Namespace,
    dir: TempDir,
    agent: Option<Child>,
}

impl Node {
    pub fn new(pools: &str) -> Self {
        let namespace = Namespace::new();
        namespace.ip("link set lo up");
        namespace.ip("link add ens7 mtu 1400 type veth peer name far0 mtu 1400");
        namespace.ip("link set ens7 addrgenmode none up");
        namespace.ip("link set far0 addrgenmode none up");
        namespace.ip("address add 192.0.2.1/24 dev ens7");
        // In memory, as /run is.
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let node = Self {
            namespace,
            dir,
            agent: None,
        };
        fs::create_dir(node.path("objects")).unwrap();
        for (name, text) in objects(pools) {
            let text = format!("apiVersion: netweft.io/v1alpha1\n{text}\n");
            fs::write(node.path("objects").join(name), text).unwrap();
        }
        node
    }

    /// With an agent that is ready.
    pub fn ready(pools: &str) -> Self {
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
        self.agent = Some(self.spawn(&self.agent_arguments()));
    }

    /// Ends the agent the hard way.
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

    /// The sentence of the condition Ready, if it is True.
    pub fn is_ready(&self) -> Result<String, String> {
        let conditions = self.status()?.conditions;
        let ready = conditions.into_iter().find(|one| one.type_ == "Ready");
        match ready {
            Some(ready) if ready.status == "True" => Ok(ready.message),
            other => Err(format!("{other:?}\n{}", self.log())),
        }
    }

    pub fn wait_until_ready(&self) {
        until("the agent to be ready", || self.is_ready());
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

    /// Starts the plugin, perhaps under another program.
    pub fn plugin(&self, under: &[&str], verb: &str, container: &str, netns: &str) -> Child {
        let text = fs::read_to_string(self.path("cni/10-netweft.conflist")).unwrap();
        let list: Value = serde_json::from_str(&text).unwrap();
        let mut conf = list["plugins"][0].clone();
        for key in ["cniVersion", "name"] {
            conf[key] = list[key].clone();
        }
        let plugin = Path::new(env!("CARGO_BIN_EXE_netweft-agent")).with_file_name("netweft");
        let plugin = plugin.display().to_string();
        let words: Vec<&str> = under.iter().copied().chain([plugin.as_str()]).collect();
        let arguments = format!("K8S_POD_NAMESPACE=default;K8S_POD_NAME={container}");
        let mut child = self.namespace.run(|| {
            Command::new(words[0])
                .args(&words[1..])
                .env("CNI_COMMAND", verb)
                .env("CNI_CONTAINERID", container)
                .env("CNI_NETNS", netns)
                .env("CNI_IFNAME", "eth0")
                .env("CNI_PATH", "/opt/cni/bin")
                .env("CNI_ARGS", arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("the plugin beside the agent; build the whole workspace")
        });
        let mut input = child.stdin.take().unwrap();
        std::io::Write::write_all(&mut input, conf.to_string().as_bytes()).unwrap();
        child
    }

    pub fn add(&self, container: &str) -> Pod {
        let space = Namespace::new();
        let added = self.plugin(&[], "ADD", container, &space.path());
        Pod::of(container, space, added)
            .unwrap_or_else(|said| panic!("ADD {container}: {said}\n{}", self.log()))
    }

    pub fn del(&self, pod: &Pod) {
        let netns = pod.space.path();
        let done = self.plugin(&[], "DEL", &pod.container, &netns);
        assert!(done.wait_with_output().unwrap().status.success());
    }

    /// What the agent's own check says, and its exit code.
    pub fn check(&self) -> (Vec<String>, Option<i32>) {
        let output = self.namespace.run(|| {
            Command::new(env!("CARGO_BIN_EXE_netweft-agent"))
                .arg("check")
                .arg("--run-dir")
                .arg(self.path("run"))
                .output()
                .unwrap()
        });
        let said = String::from_utf8(output.stdout).unwrap();
        let code = ExitStatus::code(&output.status);
        (said.lines().map(str::to_owned).collect(), code)
    }

    /// Waits until the check finds nothing, and says how long that took.
    pub fn wait_until_clean(&self) -> Duration {
        let started = Instant::now();
        until("the node to be clean", || match self.check() {
            (_, Some(0)) => Ok(()),
            (said, code) => Err(format!("{code:?}: {said:#?}")),
        });
        started.elapsed()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill_agent();
    }
}

/// A pod that ADD has attached.
pub struct Pod {
    pub container: String,
    pub space: Namespace,
    pub address: IpAddr,
    /// The host's end of its link.
    pub link: String,
}

impl Pod {
    /// What became of an ADD; what it said if it failed.
    pub fn of(container: &str, space: Namespace, added: Child) -> Result<Self, String> {
        let output = added.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            return Err(format!("{}: {said}", output.status));
        }
        let result: Value = serde_json::from_str(&said).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap();
        let interfaces = result["interfaces"].as_array().unwrap();
        let link = &interfaces[interfaces.len() - 2]["name"];
        Ok(Self {
            container: container.to_owned(),
            space,
            address: address.parse::<IpNet>().unwrap().addr(),
            link: link.as_str().unwrap().to_owned(),
        })
    }

    pub fn ip(&self) -> String {
        self.address.to_string()
    }
}

/// A pool with a block of /22 here, which has room for the leaks of a test, and one on each of two other nodes; `both`: a routed and a bridged one.
fn objects(pools: &str) -> Vec<(String, String)> {
    let kinds: &[(&str, &str)] = match pools {
        ROUTED => &[("routed", "10.244")],
        BRIDGED => &[("bridge", "10.245")],
        _ => &[("bridge", "10.245"), ("routed", "10.244")],
    };
    let mut objects = Vec::new();
    let (mut own, mut names) = (Vec::new(), Vec::new());
    for (kind, prefix) in kinds {
        objects.push((
            format!("pool-{kind}.yaml"),
            format!(
                "kind: IPPool\nmetadata: {{name: {kind}}}\nspec: {{cidr: {prefix}.0.0/16, blockSize: 22, natOutgoing: true, podInterface: {kind}}}"
            ),
        ));
        for (number, node) in ["one", "two", "three"].iter().enumerate() {
            let (block, last) = (format!("{prefix}.{}.0/22", number * 4), number + 1);
            let name = block.replace(['/'], "-").replace('.', "-");
            objects.push((
                format!("subnet-{name}.yaml"),
                format!(
                    "kind: NodeSubnet\nmetadata: {{name: {name}}}\nspec: {{cidr: {block}, pool: {kind}, node: {node}, nodeAddresses: {{ipv4: 192.0.2.{last}}}, state: Active}}"
                ),
            ));
        }
        own.push(format!("{prefix}.0.0/22"));
        names.push((*kind).to_owned());
    }
    let network = format!(
        "kind: NodeNetwork\nmetadata: {{name: one, generation: 1}}\nspec: {{addresses: {{ipv4: 192.0.2.1}}, subnets: [{}], modes: [{{name: default, pools: [{}], accept: [{{vxlan: {{}}}}], send: {{vxlan: {{}}}}}}]}}",
        own.join(", "),
        names.join(", ")
    );
    objects.push(("network.yaml".into(), network));
    objects
}
