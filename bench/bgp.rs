//! BGP of many nodes: the agents' configuration of BIRD, compared with a minimal configuration.
//!
//! The candidates take turns, lab by lab.

use std::path::PathBuf;
use std::time::Duration;

use netweft_e2e::lab::scenarios::scale::{self, ConfigSource, Figures, Topology};
use serde_json::{Value, json};

use crate::numbers::{median, sorted, to_f64};

/// Measures BGP of 50 nodes in a mesh, and of 200 behind two reflectors.
#[derive(clap::Args)]
pub struct Options {
    /// Folder with the released programs.
    #[arg(long)]
    binaries: PathBuf,
    /// Folder with `bird` and `birdc`.
    #[arg(long)]
    bird: PathBuf,
    /// Number of labs for each candidate and topology.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// The labs of one candidate in one topology.
struct Candidate {
    name: &'static str,
    topology: Topology,
    config_source: ConfigSource,
    labs: Vec<Figures>,
}

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options) -> anyhow::Result<Vec<Value>> {
    let mut candidates = Vec::new();
    for topology in [Topology::Mesh, Topology::Reflectors] {
        let sources = [
            ("netweft", ConfigSource::Agents),
            ("plain BIRD", ConfigSource::Minimal),
        ];
        for (name, config_source) in sources {
            candidates.push(Candidate {
                name,
                topology,
                config_source,
                labs: Vec::new(),
            });
        }
    }
    for _ in 0..options.rounds {
        for candidate in &mut candidates {
            let lab = scale::Options {
                topology: candidate.topology,
                config_source: candidate.config_source,
                binaries: options.binaries.clone(),
                bird: Some(options.bird.clone()),
            };
            let (figures, _) = scale::run(&lab, false)?;
            candidate.labs.push(figures);
        }
    }
    print(&candidates);
    Ok(candidates.iter().map(Candidate::json).collect())
}

impl Candidate {
    fn seconds(&self, figure: impl Fn(&Figures) -> Duration) -> f64 {
        self.median(|figures| figure(figures).as_secs_f64())
    }

    fn median(&self, figure: impl Fn(&Figures) -> f64) -> f64 {
        median(&sorted(self.labs.iter().map(figure)))
    }

    fn topology(&self) -> &'static str {
        match self.topology {
            Topology::Mesh => "50 in a mesh",
            Topology::Reflectors => "200 and 2 reflectors",
        }
    }

    /// Convergence of a second pool in seconds, if measured.
    fn pool_change(&self) -> Option<f64> {
        let seconds = self.median(|figures| {
            let change = figures.pool_change;
            change.map_or(f64::NAN, |change| change.converged.as_secs_f64())
        });
        Some(seconds).filter(|seconds| !seconds.is_nan())
    }

    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "topology": self.topology(),
            "convergedSeconds": self.seconds(|figures| figures.converged),
            "cpuSeconds": self.seconds(|figures| figures.cpu),
            "cpuSecondsOfBusiest": self.seconds(|figures| figures.cpu_of_busiest),
            "kib": self.median(kib),
            "kibOfLargest": self.median(kib_of_largest),
            "secondPoolSeconds": self.pool_change(),
        })
    }
}

fn print(all: &[Candidate]) {
    println!(
        "medians                             converged   ratio plain   CPU of all   ratio plain   of busiest   \
         memory   of largest   ratio plain   second pool"
    );
    for candidate in all {
        let mut others = all.iter();
        let plain = others.find(|other| {
            other.topology == candidate.topology && other.config_source == ConfigSource::Minimal
        });
        let ratio = |figure: &dyn Fn(&Candidate) -> f64| {
            plain.map_or(f64::NAN, |plain| figure(candidate) / figure(plain))
        };
        let converged = |candidate: &Candidate| candidate.seconds(|figures| figures.converged);
        let cpu = |candidate: &Candidate| candidate.seconds(|figures| figures.cpu);
        let largest = |candidate: &Candidate| candidate.median(kib_of_largest);
        println!(
            "{:10}   {:20} {:9.1} s {:13.2} {:10.2} s {:13.2} {:10.2} s {:8.0} {:8.0} KiB {:13.2}   {:>11}",
            candidate.name,
            candidate.topology(),
            converged(candidate),
            ratio(&converged),
            cpu(candidate),
            ratio(&cpu),
            candidate.seconds(|figures| figures.cpu_of_busiest),
            candidate.median(kib),
            largest(candidate),
            ratio(&largest),
            candidate
                .pool_change()
                .map_or("-".into(), |seconds| format!("{seconds:.1} s")),
        );
    }
}

fn kib(figures: &Figures) -> f64 {
    to_f64(figures.memory)
}

fn kib_of_largest(figures: &Figures) -> f64 {
    to_f64(figures.memory_of_largest)
}
