//! Whether the node is what the agent would make of its objects.

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
use crate::inputs::other_networks;
use crate::inputs::source::Source;
use crate::inputs::{Inputs, Objects};
use crate::pods::{Hold, PodState};
use crate::reconcile::comparison::Comparison;
use netweft_common::error_chain;

/// How long the objects may take to be heard of.
const TIMEOUT: Duration = Duration::from_secs(10);

/// A node, its objects and its places.
pub struct NodeCheck {
    node: String,
    source: Source,
    paths: Paths,
    plugins: Option<Plugins>,
    ignore_other_networks: bool,
}

impl NodeCheck {
    /// Learns of the objects.
    ///
    /// # Errors
    /// Nothing says where the API server is.
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

    /// What is not as it should be, in sentences.
    ///
    /// # Errors
    /// The objects cannot be had, or the node cannot be looked at.
    pub async fn problems(&self) -> anyhow::Result<Vec<String>> {
        let objects = self.objects().await?;
        let lacks_ipv6 = !Parameters::new(&self.paths).has_ipv6();
        let carried = lacks_ipv6.then(|| without_ipv6(&objects)).flatten();
        let objects = carried.unwrap_or(objects);
        let Some(network) = &objects.network else {
            bail!("there is no NodeNetwork {}", self.node);
        };
        let kernel = Rtnl::new()?;
        if !self.ignore_other_networks && !other_networks::has_served(&self.paths) {
            let actual = kernel.read().await?;
            let found = other_networks::find(&actual, &objects.pools, &self.paths.cni_conf_dir);
            if let Some(cause) = found.cause() {
                return Ok(vec![cause.to_string()]);
            }
        }
        let config = NodeConfig::read(&self.paths.run_dir).ok();
        let records = Store::new(&self.paths.run_dir).list()?;
        let pods = PodState::of(&records, config.as_ref(), |_| Hold::Settled);
        let given = (&objects, network);
        // Whether some are to stand in for BIRD's routes only the agent knows.
        let kept = BackupRoutes::Keep;
        let actual = kernel.read().await?;
        let compared = Comparison::make(&self.node, given, pods, (&kernel, actual), kept).await?;
        let difference = compared.difference;
        let undone = difference.ops.iter().map(|op| format!("Undone: {op}."));
        let conflicts = difference.conflicts.iter().map(ToString::to_string);
        let mut problems: Vec<String> = undone.chain(conflicts).collect();
        problems.extend(self.parameters(&compared.desired));
        problems.extend(self.files(&compared.desired));
        problems.extend(self.changed_plugins());
        for family in TableFamily::ALL {
            let table = self.table(family, &compared.inputs, &compared.desired);
            problems.extend(table.await);
        }
        Ok(problems)
    }

    /// What is wrong with an nft table. A kernel that cannot have it lacks it only where pods are not masqueraded.
    async fn table(
        &self,
        family: TableFamily,
        inputs: &Inputs,
        desired: &Desired,
    ) -> Option<String> {
        let (title, text) = (family.title(), desired.table(family));
        match Nft::new(&self.paths.run_dir, family).is(text).await {
            Ok(true) => None,
            Ok(false) => {
                let impossible = matches!(nft::try_out(text).await, Err(NftError::NoFamily));
                let needed =
                    family == TableFamily::Inet && desired::nft::unmasqueraded(inputs).is_some();
                let harmless = impossible && !needed;
                (!harmless).then(|| format!("The {title} is not what it should be."))
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
                bail!("the objects cannot be had within {TIMEOUT:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn parameters<'a>(&'a self, desired: &'a Desired) -> impl Iterator<Item = String> + 'a {
        let wanted = desired.sysctls.iter();
        wanted.filter_map(|(name, wanted)| {
            let found = std::fs::read_to_string(self.paths.sysctl_dir.join(name)).ok()?;
            let found = found.trim();
            (found != wanted)
                .then(|| format!("Parameter net/{name} is {found} and should be {wanted}."))
        })
    }

    fn changed_plugins(&self) -> Vec<String> {
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

    fn files(&self, desired: &Desired) -> Vec<String> {
        let mut problems = Vec::new();
        match NodeConfig::read(&self.paths.run_dir) {
            Ok(found) if found == desired.plugin => {}
            Ok(_) => problems.push("node.json is not what it should be.".to_owned()),
            Err(error) => problems.push(format!(
                "node.json cannot be used: {}.",
                error_chain(&error)
            )),
        }
        let conflist = self.paths.cni_conf_dir.join(CONFLIST_FILE);
        let wanted = conf::conflist(&self.paths.run_dir.to_string_lossy());
        let found = std::fs::read_to_string(&conflist)
            .with_context(|| format!("read {}", conflist.display()));
        match found {
            Ok(found) if found == wanted => {}
            Ok(_) => problems.push(format!("{} is not what it should be.", conflist.display())),
            Err(error) => problems.push(format!("The runtime has no configuration: {error:#}.")),
        }
        problems
    }
}
