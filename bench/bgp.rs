//! BGP of many nodes: BIRD as the agents configure it, beside the shortest configuration that works.
//!
//! The contenders take turns, lab by lab.

use std::path::PathBuf;
use std::time::Duration;

use netweft_e2e::lab::scenarios::scale::{self, Author, Figures, Topology};
use serde_json::{Value, json};

use crate::numbers::{median, precise, sorted};

/// Measures BGP of 50 nodes in a mesh, and of 200 behind two reflectors.
#[derive(clap::Args)]
pub struct Options {
    /// Folder with the released programs.
    #[arg(long)]
    binaries: PathBuf,
    /// Folder with `bird` and `birdc`.
    #[arg(long)]
    bird: PathBuf,
    /// Labs of each contender and topology.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
}

/// The labs of one contender in one topology.
struct Contender {
    name: &'static str,
    topology: Topology,
    author: Author,
    labs: Vec<Figures>,
}

/// Measures, prints a table, and returns the figures.
pub fn run(options: &Options) -> anyhow::Result<Vec<Value>> {
    let mut contenders = Vec::new();
    for topology in [Topology::Mesh, Topology::Reflectors] {
        for (name, author) in [("netweft", Author::Agents), ("plain BIRD", Author::Plain)] {
            contenders.push(Contender {
                name,
                topology,
                author,
                labs: Vec::new(),
            });
        }
    }
    for _ in 0..options.rounds {
        for contender in &mut contenders {
            let lab = scale::Options {
                topology: contender.topology,
                author: contender.author,
                binaries: options.binaries.clone(),
                bird: Some(options.bird.clone()),
            };
            let (figures, _) = scale::run(&lab, false)?;
            contender.labs.push(figures);
        }
    }
    print(&contenders);
    Ok(contenders.iter().map(Contender::json).collect())
}

impl Contender {
    fn seconds(&self, of: impl Fn(&Figures) -> Duration) -> f64 {
        self.median(|figures| of(figures).as_secs_f64())
    }

    fn median(&self, of: impl Fn(&Figures) -> f64) -> f64 {
        median(&sorted(self.labs.iter().map(of)))
    }

    fn topology(&self) -> &'static str {
        match self.topology {
            Topology::Mesh => "50 in a mesh",
            Topology::Reflectors => "200 and 2 reflectors",
        }
    }

    /// Where it was measured.
    fn known(&self) -> Option<f64> {
        let known = self.median(|figures| {
            let edit = figures.edit;
            edit.map_or(f64::NAN, |edit| edit.known.as_secs_f64())
        });
        Some(known).filter(|known| !known.is_nan())
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
            "secondPoolSeconds": self.known(),
        })
    }
}

fn print(all: &[Contender]) {
    println!(
        "medians                             converged   times plain   CPU of all   times plain   of busiest   \
         memory   of largest   times plain   second pool"
    );
    for one in all {
        let mut others = all.iter();
        let plain =
            others.find(|other| other.topology == one.topology && other.author == Author::Plain);
        let times = |of: &dyn Fn(&Contender) -> f64| plain.map_or(f64::NAN, |it| of(one) / of(it));
        let converged = |it: &Contender| it.seconds(|figures| figures.converged);
        let cpu = |it: &Contender| it.seconds(|figures| figures.cpu);
        let largest = |it: &Contender| it.median(kib_of_largest);
        println!(
            "{:10}   {:20} {:9.1} s {:13.2} {:10.2} s {:13.2} {:10.2} s {:8.0} {:8.0} KiB {:13.2}   {:>11}",
            one.name,
            one.topology(),
            converged(one),
            times(&converged),
            cpu(one),
            times(&cpu),
            one.seconds(|figures| figures.cpu_of_busiest),
            one.median(kib),
            largest(one),
            times(&largest),
            one.known()
                .map_or("-".into(), |known| format!("{known:.1} s")),
        );
    }
}

fn kib(figures: &Figures) -> f64 {
    precise(figures.memory)
}

fn kib_of_largest(figures: &Figures) -> f64 {
    precise(figures.memory_of_largest)
}
