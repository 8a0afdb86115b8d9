//! The program `netweft`: reads a CNI request from the environment and standard input, and prints the result.

use std::io::Read;
use std::process::ExitCode;

use netweft_cni::commands;
use netweft_cni::error::PluginError;

fn main() -> ExitCode {
    let mut input = Vec::new();
    if let Err(source) = std::io::stdin().read_to_end(&mut input) {
        return print_error(
            &PluginError::Io {
                what: "read the network configuration from standard input".to_owned(),
                source,
            },
            "1.1.0",
        );
    }
    match commands::run(|name| std::env::var(name).ok(), &input) {
        Ok(result) => {
            print!("{result}");
            ExitCode::SUCCESS
        }
        Err((error, cni_version)) => print_error(&error, &cni_version),
    }
}

fn print_error(error: &PluginError, cni_version: &str) -> ExitCode {
    println!("{}", error.to_json(cni_version));
    eprintln!("netweft: {}", error.with_causes());
    ExitCode::FAILURE
}
