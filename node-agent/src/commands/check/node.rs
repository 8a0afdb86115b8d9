//! Compares the whole node with the desired state of its objects.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use netweft_cni::attachment::Store;
use netweft_cni::conf::{self, CONFLIST_FILE};
use netweft_cni::node::NodeConfig;
use netweft_netstate::kernel::Kernel;
use netweft_netstate::rtnl::Rtnl;

use crate::apply::nft;
use crate::apply::nft::{Nft, NftError, TableFamily};
use crate::apply::sysctl::Parameters;
use crate::commands::args::{CheckArgs, Paths};
use crate::commands::install::Plugins;
use crate::desired::bird::BackupRoutes;
use crate::desired::{self, Desired};
use crate::inputs::Objects;
use crate::inputs::ipv6_support::without_ipv6;
use crate::inputs::other_network_detection;
use crate::inputs::source::Source;
use crate::pods::{PodState, Reservation};
use crate::reconcile::comparison::Comparison;
use netweft_common::error_chain;

/// How long to wait for the objects.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The check of one node.
pub struct NodeCheck {
    node: String,
    source: Source,
    paths: Paths,
    plugins: Option<Plugins>,
    ignore_other_networks: bool,
}

impl NodeCheck {
    /// Opens the source of the objects.
    ///
    /// # Errors
    /// The address of the API server is not configured.
    pub async fn open(node: &str, args: &CheckArgs) -> anyhow::Result<Self> {
        let (source, _) = Source::open(args.inputs.as_deref(), node).await?;
        Ok(Self {
            node: node.to_owned(),
            source,
            paths: args.paths.clone(),
            plugins: args
                .plugins
                .cni_bin_dir
                .as_deref()
                .map(|to| Plugins::new(&args.plugins.plugins, to)),
            ignore_other_networks: args.ignore_other_networks,
        })
    }

    /// The differences from the desired state, one per line.
    ///
    /// # Errors
    /// The objects are not received, or the state of the node cannot be read.
    pub async fn problems(&self) -> anyhow::Result<Vec<String>> {
        let objects = self.objects().await?;
        let has_ipv6 = Parameters::new(&self.paths).has_ipv6();
        let ipv4_only = (!has_ipv6).then(|| without_ipv6(&objects)).flatten();
        let objects = ipv4_only.unwrap_or(objects);
        let Some(network) = &objects.network else {
            bail!("NodeNetwork {} does not exist", self.node);
        };
        let kernel = Rtnl::new()?;
        if !self.ignore_other_networks && !other_network_detection::has_served(&self.paths) {
            let actual = kernel.read().await?;
            let conf_dir = &self.paths.cni_conf_dir;
            let found = other_network_detection::detect(&actual, &objects.pools, conf_dir);
            if let Some(cause) = found.cause() {
                return Ok(vec![cause.to_string()]);
            }
        }
        let config = NodeConfig::read(&self.paths.run_dir).ok();
        let records = Store::new(&self.paths.run_dir).list()?;
        let pods = PodState::of(&records, config.as_ref(), |_| Reservation::Effective);
        // Backup routes depend on the restarts of BIRD, which only the agent observes.
        let backup_routes = BackupRoutes::Keep;
        let actual = kernel.read().await?;
        let compared = Comparison::compute(
            &self.node,
            (&objects, network),
            pods,
            (&kernel, actual),
            backup_routes,
        )
        .await?;
        let difference = compared.difference;
        let pending = difference.ops.iter();
        let pending = pending.map(|op| format!("Not applied: {op}."));
        let conflicts = difference.conflicts.iter().map(ToString::to_string);
        let mut problems: Vec<String> = pending.chain(conflicts).collect();
        problems.extend(self.sysctl_problems(&compared.desired));
        problems.extend(self.file_problems(&compared.desired));
        problems.extend(self.plugin_problems());
        for family in TableFamily::ALL {
            let nft = Nft::new(&self.paths.run_dir, family);
            let is_required = family == TableFamily::Inet
                && desired::nft::unmasqueraded(&compared.inputs).is_some();
            let text = compared.desired.table(family);
            problems.extend(table_problem(&nft, text, is_required).await);
        }
        Ok(problems)
    }

    async fn objects(&self) -> anyhow::Result<Objects> {
        let end = Instant::now() + TIMEOUT;
        loop {
            if let Some(objects) = self.source.snapshot() {
                return Ok(objects);
            }
            if Instant::now() >= end {
                bail!("the objects were not received within {TIMEOUT:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn sysctl_problems<'a>(&'a self, desired: &'a Desired) -> impl Iterator<Item = String> + 'a {
        let wanted = desired.sysctls.iter();
        wanted.filter_map(|(name, wanted)| {
            let found = std::fs::read_to_string(self.paths.sysctl_dir.join(name)).ok()?;
            let found = found.trim();
            (found != wanted)
                .then(|| format!("Parameter net/{name} is {found} and should be {wanted}."))
        })
    }

    fn plugin_problems(&self) -> Vec<String> {
        let missing = self.plugins.as_ref().map(Plugins::missing);
        match missing {
            None => Vec::new(),
            Some(Err(error)) => vec![format!(
                "The plugins cannot be compared: {}.",
                error_chain(&error)
            )],
            Some(Ok(files)) => files
                .iter()
                .map(|file| format!("Plugin {} is missing or changed.", file.display()))
                .collect(),
        }
    }

    fn file_problems(&self, desired: &Desired) -> Vec<String> {
        let mut problems = Vec::new();
        match NodeConfig::read(&self.paths.run_dir) {
            Ok(found) if found == desired.plugin => {}
            Ok(_) => problems.push("node.json differs from its desired state.".to_owned()),
            Err(error) => problems.push(format!(
                "node.json cannot be read: {}.",
                error_chain(&error)
            )),
        }
        let conflist = self.paths.cni_conf_dir.join(CONFLIST_FILE);
        let wanted = conf::conflist(&self.paths.run_dir.to_string_lossy());
        let found = std::fs::read_to_string(&conflist)
            .with_context(|| format!("read {}", conflist.display()));
        match found {
            Ok(found) if found == wanted => {}
            Ok(_) => problems.push(format!(
                "{} differs from its desired state.",
                conflist.display()
            )),
            Err(error) => {
                problems.push(format!("The CNI configuration cannot be read: {error:#}."));
            }
        }
        problems
    }
}

/// The problem of an nftables table whose desired state is `text`. On a kernel without the family, a missing table is a problem only if
/// the table `is_required`: the NodeNetwork has a remark about a missing filter, and the node is Ready.
async fn table_problem(nft: &Nft, text: &str, is_required: bool) -> Option<String> {
    let title = nft.family().title();
    match nft.is(text).await {
        Ok(true) => None,
        Ok(false) => {
            let is_unsupported = matches!(nft::check_script(text).await, Err(NftError::NoFamily));
            let is_harmless = is_unsupported && !is_required;
            (!is_harmless).then(|| format!("The {title} differs from its desired state."))
        }
        Err(error) => Some(format!(
            "The {title} cannot be read: {}.",
            error_chain(&error)
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use netweft_cni::attachment::{Attachment, Bridge};
    use netweft_crds::NodeNetwork;

    use super::*;
    use crate::inputs::Inputs;
    use crate::pods::Records;
    use crate::status::problem::Problems;
    use crate::testing::in_namespace;

    const OBJECTS: [&str; 2] = [
        "kind: IPPool\nmetadata: {name: p}\nspec: {cidr: 10.244.0.0/16, podInterface: bridge}",
        "kind: NodeNetwork\nmetadata: {name: one}\nspec: {addresses: {ipv4: 192.0.2.1}, subnets: [10.244.0.0/26], modes: [{name: default, pools: [p], transport: {vxlan: {}}}]}",
    ];

    /// The inputs of a node with a bridged pod.
    fn inputs() -> Inputs {
        let [pool, network] =
            OBJECTS.map(|text| format!("apiVersion: netweft.io/v1alpha1\n{text}"));
        let network: NodeNetwork = serde_saphyr::from_str(&network).unwrap();
        let objects = Objects {
            pools: vec![serde_saphyr::from_str(&pool).unwrap()],
            subnets: Vec::new(),
            namespaces: Default::default(),
            network: Some(network.clone()),
            unreadable: Problems::default(),
        };
        let pod = Attachment {
            bridge: Some(Bridge {
                link: "nw-br0".parse().unwrap(),
                mac: "02:00:00:00:00:0b".parse().unwrap(),
            }),
            ..crate::pods::tests::attachment("one", &["10.244.0.2"])
        };
        let records = Records::from([(pod.addresses[0].ip, Ok(pod))]);
        let pods = PodState::of(&records, None, |_| Reservation::Effective);
        Inputs::new("one", &objects, &network, pods)
    }

    fn chains(table: &str) -> impl Iterator<Item = &str> {
        let lines = table
            .lines()
            .filter_map(|line| line.strip_prefix("\tchain "));
        lines.map(|line| line.trim_end_matches(" {"))
    }

    async fn assert_changes_are_reported(run_dir: &Path, family: TableFamily, text: &str) {
        let (nft, name) = (Nft::new(run_dir, family), family.name());
        assert!(chains(text).any(|chain| chain == "prerouting"), "{text}");
        let changes = chains(text).map(|chain| format!("flush chain {name} netweft {chain}"));
        for change in changes.chain([format!("delete table {name} netweft")]) {
            nft.ensure(text).await.unwrap();
            assert_eq!(table_problem(&nft, text, false).await, None);
            nft::load(&change).await.unwrap();
            let expected = format!("The {} differs from its desired state.", family.title());
            assert_eq!(
                table_problem(&nft, text, false).await,
                Some(expected),
                "{change}"
            );
        }
    }

    #[test]
    fn netns_check_reports_missing_table_and_empty_chain() {
        in_namespace(async || {
            let (dir, inputs) = (tempfile::tempdir().unwrap(), inputs());
            let text = desired::nft::render(&inputs, []);
            assert_changes_are_reported(dir.path(), TableFamily::Inet, &text).await;
            let text = desired::nft::bridge::render(&inputs.pods);
            assert_changes_are_reported(dir.path(), TableFamily::Bridge, &text).await;
        });
    }
}
