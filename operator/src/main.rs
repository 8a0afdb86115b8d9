//! The cluster operator's program.

use clap::Parser;
use netweft_operator::args::Args;
use netweft_operator::{init_logging, run};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    init_logging(&args)?;
    run(args).await
}
