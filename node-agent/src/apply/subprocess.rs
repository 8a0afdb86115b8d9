//! Runs other programs with a time limit. None outlives the agent.

use std::io;
use std::os::unix::process::ExitStatusExt;
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::prctl;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Why a program has no result.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The program cannot be started, or its input cannot be written.
    #[error("run {0}")]
    Run(String, #[source] io::Error),
    /// The program did not end in time.
    #[error(
        "{program} has not ended within {limit:?} and was killed; run it by hand on the node to see what it waits for"
    )]
    TimedOut {
        /// The program and its arguments.
        program: String,
        /// The time limit.
        limit: Duration,
    },
    /// A signal ended the program.
    #[error("{0} was ended by signal {1}")]
    Signal(String, i32),
}

/// Runs a program with this input. After `limit` the program is killed with all processes that it has started. `name` is the name of
/// the program in errors. The caller interprets the exit code.
///
/// # Errors
/// The program cannot be started, takes too long, or is ended by a signal.
pub async fn run(
    name: &str,
    mut command: Command,
    input: &[u8],
    limit: Duration,
) -> Result<Output, ProgramError> {
    let not_run = |error| ProgramError::Run(name.to_owned(), error);
    command
        .env("LC_ALL", "C")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A process group of its own, so that the processes of a wrapper are killed too.
        .process_group(0)
        .kill_on_drop(true);
    die_with_parent(&mut command);
    let mut child = command.spawn().map_err(not_run)?;
    let group = child.id().and_then(|id| i32::try_from(id).ok());
    let mut stdin = child.stdin.take();
    let exchange = async move {
        if let Some(stdin) = &mut stdin
            && let Err(error) = stdin.write_all(input).await
            // The program has ended: its output is complete.
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            return Err(error);
        }
        drop(stdin);
        child.wait_with_output().await
    };
    tokio::pin!(exchange);
    let Ok(ended) = timeout(limit, &mut exchange).await else {
        // The child has not been reaped, so its process ID is not reused.
        let _ = group.map(|group| killpg(Pid::from_raw(group), Signal::SIGKILL));
        let program = name.to_owned();
        return Err(ProgramError::TimedOut { program, limit });
    };
    let output = ended.map_err(not_run)?;
    match output.status.signal() {
        Some(signal) => Err(ProgramError::Signal(name.to_owned(), signal)),
        None => Ok(output),
    }
}

/// The kernel kills the program when the thread that started it ends, in whatever way (`PR_SET_PDEATHSIG`).
fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let ask = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have ended before that.
        if nix::unistd::getppid().as_raw() as u32 == parent {
            Ok(())
        } else {
            Err(io::ErrorKind::NotConnected.into())
        }
    };
    #[expect(
        unsafe_code,
        reason = "the standard library has no safe way to ask for this"
    )]
    // SAFETY: between fork and exec it makes two system calls, and allocates and locks nothing.
    unsafe {
        command.pre_exec(ask);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[tokio::test]
    async fn subprocess_gets_input_and_returns_output_and_exit_code() {
        let script = "tr a-z A-Z; echo no >&2; exit 3";
        let output = run("sh", shell(script), b"words", LONG).await.unwrap();
        assert_eq!(output.stdout, b"WORDS");
        assert_eq!(output.stderr, b"no\n");
        assert_eq!(output.status.code(), Some(3));
    }

    /// More than a pipe holds, to a program that reads nothing.
    #[tokio::test]
    async fn subprocess_ignoring_its_input_returns_its_output() {
        let input = vec![0; 1 << 20];
        let output = run("sh", shell("echo refused >&2; exit 1"), &input, LONG);
        let output = output.await.unwrap();
        assert_eq!(output.stderr, b"refused\n");
    }

    #[tokio::test]
    async fn hung_subprocess_is_killed_with_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pids");
        let script = format!("sleep 300 & echo $! $$ > {}; wait", file.display());
        let started = Instant::now();
        let limit = Duration::from_millis(500);
        let error = run("nft list", shell(&script), &[], limit)
            .await
            .unwrap_err();
        assert!(started.elapsed() < LONG);
        assert_eq!(
            error.to_string(),
            "nft list has not ended within 500ms and was killed; run it by hand on the node to see what it waits for"
        );
        let pids = std::fs::read_to_string(file).unwrap();
        for pid in pids.split_whitespace() {
            until_gone(pid).await;
        }
    }

    /// A zombie counts as gone: it is init's or the runtime's to reap.
    async fn until_gone(pid: &str) {
        let end = Instant::now() + LONG;
        loop {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            assert!(Instant::now() < end, "{stat}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    #[tokio::test]
    async fn missing_and_killed_subprocess_have_own_errors() {
        let missing = run("nope", Command::new("/nonexistent/nope"), &[], LONG).await;
        let missing = missing.unwrap_err();
        assert!(matches!(missing, ProgramError::Run(..)));
        let killed = run("sh", shell("kill -9 $$"), &[], LONG).await.unwrap_err();
        assert_eq!(killed.to_string(), "sh was ended by signal 9");
    }
}
