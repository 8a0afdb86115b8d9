//! A control plane of one etcd and one kube-apiserver on loopback, with the chart installed by helm.

use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::ByteString;
use k8s_openapi::api::scheduling::v1::PriorityClass;
use kube::{Api, Client, Config};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair};

/// Namespace of the release.
pub const NAMESPACE: &str = "netweft-system";
/// Directory of the chart.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/netweft");
/// A value that the chart requires. No image is pulled.
pub const IMAGES: [&str; 2] = ["--set", "image.repository=netweft"];
const ADMIN_TOKEN: &str = "admin-of-this-test";

/// A child process that is killed when this value is dropped.
pub struct Process(Child);

impl Process {
    /// Starts `command` with stdout and stderr in `log`.
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).unwrap();
        let command = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap());
        Self(command.stderr(log).spawn().unwrap())
    }

    /// Sends SIGKILL.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }

    /// PID of the process.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Sends a signal by its name.
    pub fn signal(&self, name: &str) {
        let pid = self.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-s", name, &pid])
                .status()
                .unwrap()
                .success()
        );
    }

    /// Whether the process is running.
    pub fn is_running(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    /// Waits for the end of the process.
    pub fn wait(&mut self, timeout: Duration) -> ExitStatus {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "still running after {timeout:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A control plane that ends when this value is dropped. Fields are dropped in their order, so the API server ends
/// first.
pub struct ControlPlane {
    api_server: Process,
    _etcd: Process,
    /// Directory of logs and kubeconfigs.
    pub dir: tempfile::TempDir,
    url: String,
}

impl ControlPlane {
    /// Starts a control plane and waits until it is ready.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let etcd_url = format!("http://127.0.0.1:{}", free_port());
        let etcd = start_etcd(dir.path(), &etcd_url);
        let port = free_port();
        let api_server = start_api_server(dir.path(), &etcd_url, port);
        let url = format!("https://127.0.0.1:{port}");
        let mut plane = Self {
            api_server,
            _etcd: etcd,
            dir,
            url,
        };
        plane.wait_until_ready().await;
        plane
    }

    /// Starts a control plane with the chart installed.
    pub async fn with_chart() -> Self {
        let plane = Self::start().await;
        let secrets = "bird.passwordSecrets={user-passwords}";
        plane.helm(&[
            "install",
            "netweft",
            CHART,
            "--create-namespace",
            "--set",
            secrets,
        ]);
        plane
    }

    /// Runs helm in the release's namespace, with [`IMAGES`] for installations and upgrades. Returns its output.
    pub fn helm(&self, arguments: &[&str]) -> String {
        let mut helm = Command::new(program("helm"));
        helm.args(arguments).args(["--namespace", NAMESPACE]);
        if matches!(arguments, ["install" | "upgrade", ..]) {
            helm.args(IMAGES);
        }
        let output = helm.env("KUBECONFIG", self.admin_kubeconfig()).output();
        let output = output.unwrap();
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(output.status.success(), "helm {arguments:?}: {text}");
        text
    }

    /// A client with all rights.
    pub fn admin(&self) -> Client {
        self.client(ADMIN_TOKEN)
    }

    /// A client with this token.
    pub fn client(&self, token: &str) -> Client {
        self.client_with(Some(token))
    }

    /// A client without credentials, for requests that carry their own.
    pub fn client_without_credentials(&self) -> Client {
        self.client_with(None)
    }

    fn client_with(&self, token: Option<&str>) -> Client {
        let mut config = Config::new(self.url.parse().unwrap());
        config.accept_invalid_certs = true;
        config.auth_info.token = token.map(|token| token.to_owned().into());
        Client::try_from(config).unwrap()
    }

    /// URL of the API server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The audit log: one JSON object per line.
    pub fn audit_log(&self) -> PathBuf {
        self.dir.path().join("audit.log")
    }

    /// The audit log and its rotated files. The API server rotates after 100 MB.
    pub fn audit_logs(&self) -> Vec<PathBuf> {
        let files = std::fs::read_dir(self.dir.path()).unwrap();
        let paths = files.map(|file| file.unwrap().path());
        let is_audit_log = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_string_lossy();
            name.starts_with("audit") && name.ends_with(".log")
        };
        paths.filter(is_audit_log).collect()
    }

    /// A kubeconfig with all rights.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.kubeconfig(&self.url, ADMIN_TOKEN)
    }

    /// A kubeconfig with this token, for the API server at `url`.
    pub fn kubeconfig(&self, url: &str, token: &str) -> PathBuf {
        let text = format!(
            "{{apiVersion: v1, kind: Config, current-context: c,
              clusters: [{{name: c, cluster: {{server: \"{url}\", insecure-skip-tls-verify: true}}}}],
              users: [{{name: u, user: {{token: \"{token}\"}}}}],
              contexts: [{{name: c, context: {{cluster: c, user: u}}}}]}}\n"
        );
        let file = tempfile::Builder::new()
            .suffix(".kubeconfig")
            .tempfile_in(self.dir.path())
            .unwrap();
        std::fs::write(file.path(), text).unwrap();
        file.into_temp_path().keep().unwrap()
    }

    async fn wait_until_ready(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(90);
        loop {
            // Hooks create these after the start. The admission of the chart's pods needs them.
            let classes: Api<PriorityClass> = Api::all(self.admin());
            let error = match classes.get("system-node-critical").await {
                Ok(_) => return,
                Err(error) => error,
            };
            let log = self.dir.path().join("kube-apiserver.log");
            assert!(
                Instant::now() < deadline && self.api_server.is_running(),
                "the API server is not ready: {error}\n{}",
                std::fs::read_to_string(log).unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

/// A free port outside of the kernel's ephemeral range (`ip_local_port_range`), so that it stays free until a program
/// uses it.
pub fn free_port() -> u16 {
    loop {
        let random = RandomState::new().hash_one(());
        let port = 20_000 + u16::try_from(random % 12_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

fn start_etcd(dir: &Path, url: &str) -> Process {
    let peer = format!("http://127.0.0.1:{}", free_port());
    let mut etcd = Command::new(program("etcd"));
    etcd.arg("--data-dir").arg(dir.join("etcd"));
    etcd.args(["--listen-client-urls", url, "--advertise-client-urls", url]);
    etcd.args([
        "--listen-peer-urls",
        &peer,
        "--initial-advertise-peer-urls",
        &peer,
    ]);
    etcd.args([
        "--initial-cluster",
        &format!("default={peer}"),
        "--unsafe-no-fsync",
        "--log-level",
        "error",
    ]);
    Process::start(&mut etcd, &dir.join("etcd.log"))
}

fn start_api_server(dir: &Path, etcd: &str, port: u16) -> Process {
    let (private, public) = service_account_keys(dir);
    let tokens = dir.join("tokens.csv");
    std::fs::write(
        &tokens,
        format!("{ADMIN_TOKEN},admin,admin,system:masters\n"),
    )
    .unwrap();
    let audit = dir.join("audit.yaml");
    let policy = serde_json::json!({ "apiVersion": "audit.k8s.io/v1", "kind": "Policy",
        "omitStages": ["RequestReceived"], "rules": [{ "level": "Metadata" }] });
    std::fs::write(&audit, policy.to_string()).unwrap();
    let mut server = Command::new(program("kube-apiserver"));
    server.args([
        format!("--etcd-servers={etcd}"),
        format!("--secure-port={port}"),
    ]);
    server.args([
        "--bind-address=127.0.0.1",
        "--authorization-mode=RBAC",
        "--service-cluster-ip-range=10.96.0.0/16",
    ]);
    server.arg("--service-account-issuer=https://kubernetes.default.svc");
    for (flag, path) in [
        ("cert-dir", &dir.join("certificates")),
        ("token-auth-file", &tokens),
        ("service-account-key-file", &public),
        ("service-account-signing-key-file", &private),
        ("audit-policy-file", &audit),
        ("audit-log-path", &dir.join("audit.log")),
    ] {
        server.arg(format!("--{flag}={}", path.display()));
    }
    Process::start(&mut server, &dir.join("kube-apiserver.log"))
}

/// Writes a new key pair. Returns the files of the private and the public key.
fn service_account_keys(dir: &Path) -> (PathBuf, PathBuf) {
    // SubjectPublicKeyInfo (RFC 5480) of an uncompressed point on P-256, without the point.
    const SPKI: &[u8] = b"\x30\x59\x30\x13\x06\x07\x2a\x86\x48\xce\x3d\x02\x01\x06\x08\x2a\x86\x48\xce\x3d\x03\x01\x07\x03\x42\x00";
    let (random, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_ASN1_SIGNING);
    let private = EcdsaKeyPair::generate_pkcs8(algorithm, &random).unwrap();
    let pair = EcdsaKeyPair::from_pkcs8(algorithm, private.as_ref(), &random).unwrap();
    let public = [SPKI, pair.public_key().as_ref()].concat();
    let files = (
        dir.join("service-account.key"),
        dir.join("service-account.pub"),
    );
    std::fs::write(&files.0, pem("PRIVATE KEY", private.as_ref())).unwrap();
    std::fs::write(&files.1, pem("PUBLIC KEY", &public)).unwrap();
    files
}

fn pem(label: &str, bytes: &[u8]) -> String {
    // ByteString is base64 in JSON.
    let base64 = serde_json::to_value(ByteString(bytes.to_vec())).unwrap();
    let lines: Vec<_> = base64
        .as_str()
        .unwrap()
        .as_bytes()
        .chunks(64)
        .map(String::from_utf8_lossy)
        .collect();
    format!(
        "-----BEGIN {label}-----\n{}\n-----END {label}-----\n",
        lines.join("\n")
    )
}

/// Path of a program of the control plane.
pub fn program(name: &str) -> PathBuf {
    let Some(dir) = std::env::var_os("NETWEFT_KUBE_BIN") else {
        panic!(
            "set NETWEFT_KUBE_BIN to a directory with etcd, kube-apiserver and helm; `make test` does"
        );
    };
    let path = PathBuf::from(dir).join(name);
    assert!(
        path.is_file(),
        "NETWEFT_KUBE_BIN: there is no {}",
        path.display()
    );
    path
}
