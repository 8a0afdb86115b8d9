//! BIRD's configuration on disk: never half written, and never one that BIRD would not read.

use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use crate::apply::subprocess;
use crate::apply::subprocess::ProgramError;

/// BIRD reads every name that ends in `.conf`, and no other.
const NAME: &str = "bird.conf";
const ASIDE: &str = "bird.conf.new";
/// How long BIRD may take to read a configuration.
const CHECK_TIMEOUT: Duration = Duration::from_secs(20);

/// The file is not as it should be; the last good one is still there.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// It could not be written.
    #[error("write {0}")]
    Write(PathBuf, #[source] io::Error),
    /// BIRD could not be asked.
    #[error(transparent)]
    Run(#[from] ProgramError),
    /// BIRD would not read it.
    #[error("BIRD refuses its configuration, so it keeps the last one: {0}")]
    Refused(String),
}

/// The file in its folder.
pub struct File {
    dir: PathBuf,
    /// The program and its first arguments.
    program: Vec<String>,
    /// The text that BIRD refused last, and its words.
    refused: Option<(String, String)>,
}

impl File {
    /// The file in `dir`, checked by this BIRD: the program and its first arguments.
    #[must_use]
    pub fn new(dir: &Path, program: &[String]) -> Self {
        Self {
            dir: dir.to_owned(),
            program: program.to_owned(),
            refused: None,
        }
    }

    /// Makes the folder: root's alone, for there are passwords in it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_folder(&self) -> io::Result<()> {
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&self.dir)
    }

    /// Whether there is one.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.dir.join(NAME).exists()
    }

    /// Makes the file `text`, if BIRD reads it. Returns whether that changed anything.
    ///
    /// # Errors
    /// It is as it was.
    pub async fn put(&mut self, text: &str) -> Result<bool, FileError> {
        let path = self.dir.join(NAME);
        if std::fs::read(&path).is_ok_and(|found| found == text.as_bytes()) {
            return Ok(false);
        }
        if let Some((refused, words)) = &self.refused
            && refused == text
        {
            return Err(FileError::Refused(words.clone()));
        }
        let aside = self.dir.join(ASIDE);
        write_aside(&aside, text).map_err(|error| FileError::Write(aside.clone(), error))?;
        let checked = self.check(&aside).await;
        if let Err(FileError::Refused(words)) = &checked {
            self.refused = Some((text.to_owned(), words.clone()));
        }
        let renamed = |error| FileError::Write(path.clone(), error);
        let done = checked.and_then(|()| std::fs::rename(&aside, &path).map_err(renamed));
        if done.is_err() {
            // What is refused has passwords in it too.
            let _ = std::fs::remove_file(&aside);
        }
        done.map(|()| true)
    }

    async fn check(&self, file: &Path) -> Result<(), FileError> {
        let name = format!("{} -p", self.program.join(" "));
        let (program, first) = self.program.split_first().ok_or_else(|| {
            ProgramError::Run(name.clone(), io::Error::from(io::ErrorKind::NotFound))
        })?;
        let mut command = Command::new(program);
        command.args(first).arg("-p").arg("-c").arg(file);
        let output = subprocess::run(&name, command, &[], CHECK_TIMEOUT).await?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stderr, output.stdout].concat();
        let said = String::from_utf8_lossy(&said);
        Err(FileError::Refused(
            said.split_whitespace().collect::<Vec<_>>().join(" "),
        ))
    }
}

fn write_aside(path: &Path, text: &str) -> io::Result<()> {
    // A left-over file could have another mode.
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
