//! The cluster operator's program.

use clap::Parser;
use netweft_operator::{Args, Instead, clean, init_logging, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging(&args)?;
    match args.instead {
        None => run(args).await,
        Some(Instead::Clean) => clean(args).await,
    }
}
