//! BIRD's configuration on disk. It is replaced atomically, and only by a text that BIRD accepts.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::apply::subprocess;
use crate::apply::subprocess::ProgramError;

/// BIRD reads the files whose names end in `.conf`.
const NAME: &str = "bird.conf";
/// Name of the file before it is renamed. BIRD does not read it.
const TEMPORARY_NAME: &str = "bird.conf.new";
/// Time limit of BIRD's check.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The configuration was not replaced.
#[derive(Debug, thiserror::Error)]
pub enum ConfigFileError {
    /// The file could not be written.
    #[error("write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// The check could not be run.
    #[error(transparent)]
    Run(#[from] ProgramError),
    /// BIRD refuses the text.
    #[error("BIRD refuses its configuration, so it keeps the last one: {0}")]
    Refused(String),
}

/// The configuration file.
pub struct ConfigFile {
    dir: PathBuf,
    /// The program that checks the text, and its first arguments.
    program: Vec<String>,
    /// The text that BIRD refused last, and BIRD's message.
    refused: Option<(String, String)>,
}

impl ConfigFile {
    /// The file in `dir`. `program` checks the text: a command and its first arguments.
    #[must_use]
    pub fn new(dir: &Path, program: &[String]) -> Self {
        Self {
            dir: dir.to_owned(),
            program: program.to_owned(),
            refused: None,
        }
    }

    /// Creates the directory. Only root can read it, because the configuration contains passwords.
    ///
    /// # Errors
    /// The directory cannot be created.
    pub fn create_dir(&self) -> io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir)
    }

    /// Whether the file exists.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dir.join(NAME).exists()
    }

    /// Writes `text`, if BIRD accepts it. Returns whether the file has changed.
    ///
    /// # Errors
    /// The file is unchanged.
    pub async fn write(&mut self, text: &str) -> Result<bool, ConfigFileError> {
        let path = self.dir.join(NAME);
        if std::fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(false);
        }
        if let Some((refused, message)) = &self.refused
            && refused == text
        {
            return Err(ConfigFileError::Refused(message.clone()));
        }
        let temporary = self.dir.join(TEMPORARY_NAME);
        write_private(&temporary, text)
            .map_err(|error| ConfigFileError::Write(temporary.clone(), error))?;
        let checked = self.check(&temporary).await;
        if let Err(ConfigFileError::Refused(message)) = &checked {
            self.refused = Some((text.to_owned(), message.clone()));
        }
        let not_renamed = |error| ConfigFileError::Write(path.clone(), error);
        let replaced =
            checked.and_then(|()| std::fs::rename(&temporary, &path).map_err(not_renamed));
        if replaced.is_err() {
            // A refused configuration contains passwords, too.
            let _ = std::fs::remove_file(&temporary);
        }
        replaced.map(|()| true)
    }

    async fn check(&self, file: &Path) -> Result<(), ConfigFileError> {
        let name = format!("{} -p", self.program.join(" "));
        let (program, arguments) = self.program.split_first().ok_or_else(|| {
            ProgramError::Run(name.clone(), io::Error::from(io::ErrorKind::NotFound))
        })?;
        let mut command = Command::new(program);
        command.args(arguments).arg("-p").arg("-c").arg(file);
        let output = subprocess::run(&name, command, &[], CHECK_TIMEOUT).await?;
        if output.status.success() {
            return Ok(());
        }
        let message = [output.stderr, output.stdout].concat();
        let message = String::from_utf8_lossy(&message);
        Err(ConfigFileError::Refused(
            message.split_whitespace().collect::<Vec<_>>().join(" "),
        ))
    }
}

/// Writes a file that only root can read.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    // A leftover file could have another mode.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut options = std::fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}
