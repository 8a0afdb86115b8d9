//! Execution of programs. Errors contain the command line and the output of the program.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, bail, ensure};

/// Run a command to its end and return its standard output.
///
/// # Errors
/// The command cannot be started, or its exit status is not 0. The error contains the command line and both outputs.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let finished = run(command)?;
    let stdout = String::from_utf8_lossy(&finished.stdout).into_owned();
    if !finished.status.success() {
        let stderr = String::from_utf8_lossy(&finished.stderr);
        bail!(
            "{}: {}\n{}{}",
            line(command),
            finished.status,
            stdout.trim_end(),
            stderr.trim_end()
        );
    }
    Ok(stdout)
}

/// Run a command to its end with `input` as standard input. The command inherits standard output and standard error.
///
/// # Errors
/// The command cannot be started, does not read its input, or its exit status is not 0.
pub fn feed(command: &mut Command, input: &str) -> anyhow::Result<()> {
    let mut child = command
        .stdin(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", line(command)))?;
    let mut stdin = child
        .stdin
        .take()
        .context("the command has no standard input")?;
    stdin.write_all(input.as_bytes())?;
    drop(stdin);
    let status = child.wait()?;
    ensure!(
        status.success(),
        "{} failed on its input: {status}",
        line(command)
    );
    Ok(())
}

/// Run a command to its end and return its output and exit status. A failed command is not an error.
///
/// # Errors
/// The command cannot be started.
pub fn run(command: &mut Command) -> anyhow::Result<Output> {
    command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {}", line(command)))
}

/// The command of a line of words, which are separated by spaces. Quotes have no meaning.
#[must_use]
pub fn words(line: &str) -> Command {
    let mut words = line.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("false"));
    command.args(words);
    command
}

fn line(command: &Command) -> String {
    let mut line = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        line += " ";
        line += &argument.to_string_lossy();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn feed_of_failing_program_is_error() {
        let feed_script = |script| feed(Command::new("sh").args(["-c", script]), "yes");
        feed_script("test \"$(cat)\" = yes").unwrap();
        let error = feed_script("cat >/dev/null; exit 3")
            .unwrap_err()
            .to_string();
        assert!(error.contains("failed on its input"), "{error}");
    }

    #[test]
    fn failed_command_error_shows_command_and_stderr() {
        let error = output(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("exit 3") && error.contains("no such thing"),
            "{error}"
        );
    }
}
