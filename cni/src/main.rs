//! The plugin as the runtime starts it: a request in the environment and on standard input, an answer on standard output.

use std::io::Read;
use std::process::ExitCode;

use netweft_cni::commands;
use netweft_cni::error::PluginError;

fn main() -> ExitCode {
    let mut input = Vec::new();
    if let Err(source) = std::io::stdin().read_to_end(&mut input) {
        return refuse(
            &PluginError::Io {
                what: "read standard input".to_owned(),
                source,
            },
            "1.1.0",
        );
    }
    match commands::run(|name| std::env::var(name).ok(), &input) {
        Ok(answer) => {
            print!("{answer}");
            ExitCode::SUCCESS
        }
        Err((error, cni_version)) => refuse(&error, &cni_version),
    }
}

fn refuse(error: &PluginError, cni_version: &str) -> ExitCode {
    println!("{}", error.to_json(cni_version));
    eprintln!("netweft: {}", error.in_full());
    ExitCode::FAILURE
}
