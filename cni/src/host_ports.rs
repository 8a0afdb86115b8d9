//! Host ports: the chained plugin portmap forwards them with `nft` or `iptables`.
//!
//! portmap searches `PATH`, as the runtime sets it, for both programs (`ensureBackend` in portmap 1.9). Without them it
//! fails, also at DEL, after this plugin has allocated an address. This plugin therefore checks for the programs first.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::conf::RuntimeConfig;
use crate::error::PluginError;

/// Programs that forward host ports; one of them is enough.
const PROGRAMS: [&str; 2] = ["nft", "iptables"];

/// Checks that this node can forward the pod's host ports. `path` is the variable `PATH`.
///
/// A network configuration of an older agent does not request the capability `portMappings` for this plugin. Then the check
/// succeeds.
///
/// # Errors
/// The pod has a host port, and no directory of `path` has one of the programs.
pub fn check(config: &RuntimeConfig, path: &str) -> Result<(), PluginError> {
    let mappings = config.port_mappings.iter().flatten();
    let mut ports = mappings
        .map(|mapping| mapping.host_port)
        .filter(|port| *port > 0);
    let Some(port) = ports.next() else {
        return Ok(());
    };
    if PROGRAMS.iter().any(|program| is_on(path, program)) {
        return Ok(());
    }
    Err(PluginError::TryLater(format!(
        "the pod has hostPort {port}, but neither nft nor iptables is on the container runtime's PATH ({path}) on this \
         node: install nftables or iptables on the node, run the pod on another node, or remove hostPort from the pod"
    )))
}

/// Whether a directory of `path` has an executable file of this name. Relative directories do not count, as in Go's
/// `exec.LookPath`, which portmap uses.
fn is_on(path: &str, program: &str) -> bool {
    let directories = path.split(':').map(Path::new);
    let mut directories = directories.filter(|directory| directory.is_absolute());
    directories.any(|directory| {
        let file = fs::metadata(directory.join(program));
        file.is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(runtime_config: &str) -> RuntimeConfig {
        serde_json::from_str(runtime_config).unwrap()
    }

    #[test]
    fn host_port_needs_nft_or_iptables_on_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().display().to_string();
        let paths = format!("/nowhere::{path}");
        let config = parse(r#"{"portMappings":[{"hostPort":8080,"containerPort":80}]}"#);
        for program in PROGRAMS {
            let file = directory.path().join(program);
            assert!(check(&config, &paths).is_err(), "{program} is missing");
            fs::write(&file, "").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
            assert!(check(&config, &paths).is_err(), "{program}: not executable");
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            check(&config, &paths).unwrap();
            fs::remove_file(&file).unwrap();
            fs::create_dir(&file).unwrap();
            assert!(check(&config, &paths).is_err(), "{program}: a directory");
        }
    }

    /// containerd passes `null` for a pod without ports. A network configuration of an older agent does not request them.
    #[test]
    fn pod_without_host_ports_needs_no_program() {
        for config in [
            "{}",
            r#"{"portMappings":null}"#,
            r#"{"portMappings":[]}"#,
            r#"{"portMappings":[{"containerPort":80}]}"#,
            r#"{"portMappings":[{"hostPort":0,"containerPort":80}]}"#,
        ] {
            check(&parse(config), "").unwrap();
        }
    }
}
