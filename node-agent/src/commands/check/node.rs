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
use crate::inputs::ipv6_support::without_ipv6;
use crate::inputs::other_network_detection;
use crate::inputs::source::Source;
use crate::inputs::{Inputs, Objects};
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
            let problem = self.table_problem(family, &compared.inputs, &compared.desired);
            problems.extend(problem.await);
        }
        Ok(problems)
    }

    /// The problem of an nftables table. On a kernel without nftables, a missing table is a problem only if pods are not masqueraded.
    async fn table_problem(
        &self,
        family: TableFamily,
        inputs: &Inputs,
        desired: &Desired,
    ) -> Option<String> {
        let (title, text) = (family.title(), desired.table(family));
        match Nft::new(&self.paths.run_dir, family).is(text).await {
            Ok(true) => None,
            Ok(false) => {
                let is_unsupported =
                    matches!(nft::check_script(text).await, Err(NftError::NoFamily));
                let is_needed =
                    family == TableFamily::Inet && desired::nft::unmasqueraded(inputs).is_some();
                let is_harmless = is_unsupported && !is_needed;
                (!is_harmless).then(|| format!("The {title} differs from its desired state."))
            }
            Err(error) => Some(format!(
                "The {title} cannot be read: {}.",
                error_chain(&error)
            )),
        }
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
