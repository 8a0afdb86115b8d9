//! Duration of ADD and DEL of netweft's plugin, compared with the reference plugins.
//!
//! The candidates take turns, sandbox by sandbox.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::namespace::Namespace;

/// Measures ADD and DEL of netweft's plugin and of the reference plugins.
#[derive(clap::Args)]
pub struct Options {
    /// Folder with netweft's plugin, `netweft`.
    #[arg(long)]
    plugin: PathBuf,
    /// Folder with `bridge`, `ptp` and `host-local`.
    #[arg(long)]
    reference: PathBuf,
    /// Number of sandboxes for each candidate.
    #[arg(long, default_value_t = 100)]
    count: usize,
}

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Value>> {
    let candidates = candidates(options, scratch)?;
    let figures = measure(&candidates, options.count)?;
    print(&figures);
    Ok(figures.iter().map(Figures::json).collect())
}

/// A plugin with its configuration.
struct Candidate {
    name: &'static str,
    program: PathBuf,
    configuration: Value,
    path: PathBuf,
}

fn candidates(options: &Options, scratch: &Path) -> anyhow::Result<Vec<Candidate>> {
    let run_dir = scratch.join("run");
    fs::create_dir(&run_dir)?;
    let pool = json!({ "name": "bench", "podInterface": "routed", "mtu": 1450, "blocks": ["10.90.0.0/22"] });
    let node = json!({ "version": 1, "pools": [pool] });
    fs::write(run_dir.join("node.json"), node.to_string())?;
    let netweft = Candidate {
        name: "netweft",
        program: options.plugin.join("netweft"),
        configuration: json!({ "cniVersion": "1.0.0", "name": "netweft", "type": "netweft", "runDir": run_dir }),
        path: options.plugin.clone(),
    };
    let reference = |name, kind: &str, subnet: &str, fields: Value| {
        let mut configuration = json!({
            "cniVersion": "1.0.0", "name": kind, "type": kind,
            "ipam": { "type": "host-local", "dataDir": scratch.join(kind), "ranges": [[{ "subnet": subnet }]],
                "routes": [{ "dst": "0.0.0.0/0" }] },
        });
        if let (Some(all), Some(fields)) = (configuration.as_object_mut(), fields.as_object()) {
            all.extend(fields.clone());
        }
        Candidate {
            name,
            program: options.reference.join(kind),
            configuration,
            path: options.reference.clone(),
        }
    };
    Ok(vec![
        netweft,
        reference(
            "bridge + host-local",
            "bridge",
            "10.91.0.0/22",
            json!({ "bridge": "bench0", "isGateway": true }),
        ),
        reference("ptp + host-local", "ptp", "10.92.0.0/22", json!({})),
    ])
}

/// The figures of one candidate.
struct Figures {
    name: &'static str,
    add: Vec<Duration>,
    del: Vec<Duration>,
    parallel: Duration,
}

fn measure(candidates: &[Candidate], count: usize) -> anyhow::Result<Vec<Figures>> {
    let mut figures: Vec<Figures> = candidates.iter().map(Figures::new).collect();
    // The results of the first call are discarded (cold caches).
    let mut sandboxes = Vec::new();
    for n in 0..=count {
        for (candidate, figures) in candidates.iter().zip(&mut figures) {
            let sandbox = Sandbox::new(format!("bench-{n}"))?;
            let took = timed(|| candidate.call("ADD", &sandbox))?;
            if n > 0 {
                figures.add.push(took);
            }
            sandboxes.push(sandbox);
        }
    }
    for (n, sandboxes) in sandboxes.chunks(candidates.len()).enumerate() {
        for ((candidate, figures), sandbox) in candidates.iter().zip(&mut figures).zip(sandboxes) {
            let took = timed(|| candidate.call("DEL", sandbox))?;
            if n > 0 {
                figures.del.push(took);
            }
        }
    }
    for (candidate, figures) in candidates.iter().zip(&mut figures) {
        figures.parallel = parallel_adds(candidate, count)?;
    }
    Ok(figures)
}

fn timed(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let started = Instant::now();
    work()?;
    Ok(started.elapsed())
}

/// The time of `count` parallel ADDs, until the last has ended. DEL removes the pods afterwards.
fn parallel_adds(candidate: &Candidate, count: usize) -> anyhow::Result<Duration> {
    let sandboxes = (0..count)
        .map(|n| Sandbox::new(format!("parallel-{n}")))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let took = timed(|| {
        let running = sandboxes
            .iter()
            .map(|sandbox| candidate.start("ADD", sandbox))
            .collect::<anyhow::Result<Vec<_>>>()?;
        running.into_iter().try_for_each(finish)
    })?;
    sandboxes
        .iter()
        .try_for_each(|sandbox| candidate.call("DEL", sandbox))?;
    Ok(took)
}

/// A pod sandbox with its network namespace.
struct Sandbox {
    name: String,
    netns: Namespace,
}

impl Sandbox {
    fn new(name: String) -> anyhow::Result<Self> {
        let netns = Namespace::new()?;
        Ok(Self { name, netns })
    }
}

impl Candidate {
    fn call(&self, verb: &str, sandbox: &Sandbox) -> anyhow::Result<()> {
        finish(self.start(verb, sandbox)?)
    }

    fn start(&self, verb: &str, sandbox: &Sandbox) -> anyhow::Result<Child> {
        let mut child = Command::new(&self.program)
            .env_clear()
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &sandbox.name)
            .env("CNI_NETNS", sandbox.netns.path())
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", &self.path)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", self.program.display()))?;
        let mut input = child
            .stdin
            .take()
            .context("the plugin has no standard input")?;
        input.write_all(self.configuration.to_string().as_bytes())?;
        Ok(child)
    }
}

fn finish(child: Child) -> anyhow::Result<()> {
    let output = child.wait_with_output()?;
    ensure!(
        output.status.success(),
        "a plugin failed: {}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

impl Figures {
    fn new(candidate: &Candidate) -> Self {
        Self {
            name: candidate.name,
            add: Vec::new(),
            del: Vec::new(),
            parallel: Duration::ZERO,
        }
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "addMedianMs": milliseconds(quantile(&self.add, 50)),
            "addP99Ms": milliseconds(quantile(&self.add, 99)),
            "delMedianMs": milliseconds(quantile(&self.del, 50)),
            "delP99Ms": milliseconds(quantile(&self.del, 99)),
            "parallelAddsMs": milliseconds(self.parallel),
        })
    }
}

fn quantile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e5).round() / 100.0
}

fn print(figures: &[Figures]) {
    let first = figures.first().map(|netweft| quantile(&netweft.add, 50));
    println!(
        "milliseconds           ADD median    p99   DEL median    p99   all ADDs at once   ADD, ratio to netweft"
    );
    for candidate in figures {
        let add = quantile(&candidate.add, 50);
        println!(
            "{:22} {:10.2} {:6.2} {:12.2} {:6.2} {:18.0} {:23.1}",
            candidate.name,
            milliseconds(add),
            milliseconds(quantile(&candidate.add, 99)),
            milliseconds(quantile(&candidate.del, 50)),
            milliseconds(quantile(&candidate.del, 99)),
            milliseconds(candidate.parallel),
            add.as_secs_f64() / first.unwrap_or(add).as_secs_f64()
        );
    }
}
