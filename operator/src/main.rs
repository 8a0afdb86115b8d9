//! The program of the cluster operator.

use clap::Parser;
use netweft_operator::{Args, Command, clean, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    args.log.init();
    match args.command {
        None => run(args).await,
        Some(Command::Clean) => clean(args).await,
    }
}
