//! The cluster operator's program.

use clap::Parser;
use netweft_operator::{Args, Command, clean, init_logging, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging(&args)?;
    match args.command {
        None => run(args).await,
        Some(Command::Clean) => clean(args).await,
    }
}
