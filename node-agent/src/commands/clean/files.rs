//! Files of ours on a node.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use netweft_cni::conf::{
    BANDWIDTH_PLUGIN, CONFLIST_FILE, LOOPBACK_PLUGIN, PLUGIN, PORTMAP_PLUGIN, RUNTIME_LOOPBACK,
};
use netweft_cni::node;
use netweft_common::atomic_file;

use crate::commands::args::CleanArgs;
use crate::commands::install;

/// Where they are.
pub struct Files {
    run_dir: PathBuf,
    conf_dir: PathBuf,
    bin_dir: PathBuf,
}

impl Files {
    /// Those of a node.
    pub fn new(args: &CleanArgs) -> Self {
        Self {
            run_dir: args.paths.run_dir.clone(),
            conf_dir: args.paths.cni_conf_dir.clone(),
            bin_dir: args.cni_bin_dir.clone(),
        }
    }

    /// Takes away what a pod begins with: the runtime's configuration, then what the plugin may hand out.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn close(&self) -> io::Result<()> {
        for file in self.configurations()? {
            remove(&file)?;
        }
        remove(&self.run_dir.join(node::FILE))
    }

    /// Takes away the plugins, and the run directory with all that is in it.
    ///
    /// # Errors
    /// One cannot be removed.
    pub fn remove_rest(&self) -> io::Result<()> {
        for file in self.plugins()? {
            remove(&file)?;
        }
        if self.run_dir.exists() {
            fs::remove_dir_all(&self.run_dir)?;
            println!("Done: {} removed.", self.run_dir.display());
        }
        Ok(())
    }

    /// What there is, in sentences.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn left(&self) -> io::Result<Vec<String>> {
        let mut files = self.configurations()?;
        files.extend(self.plugins()?);
        files.extend(self.run_dir.exists().then(|| self.run_dir.clone()));
        let sentence = |file: &PathBuf| format!("There is {}.", file.display());
        Ok(files.iter().map(sentence).collect())
    }

    fn configurations(&self) -> io::Result<Vec<PathBuf>> {
        named(&self.conf_dir, |name| {
            name == CONFLIST_FILE || atomic_file::is_temporary(CONFLIST_FILE, name)
        })
    }

    fn plugins(&self) -> io::Result<Vec<PathBuf>> {
        let ours = [PLUGIN, PORTMAP_PLUGIN, BANDWIDTH_PLUGIN, LOOPBACK_PLUGIN];
        let loopback = self.bin_dir.join(RUNTIME_LOOPBACK);
        let linked = install::is_loopback_link(&loopback);
        named(&self.bin_dir, |name| {
            let mut ours = ours.iter();
            ours.any(|plugin| name == *plugin || install::is_aside(plugin, name))
                || linked && name == RUNTIME_LOOPBACK
        })
    }
}

/// The files in a directory whose names are such; none if there is no directory.
fn named(dir: &Path, is: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&is) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Ok(()) => {
            println!("Done: {} removed.", file.display());
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn clean_removes_own_files_and_keeps_foreign_files() {
        let dir = tempfile::tempdir().unwrap();
        let [run_dir, conf_dir, bin_dir] = ["run", "conf", "bin"].map(|name| dir.path().join(name));
        let files = Files {
            run_dir,
            conf_dir,
            bin_dir,
        };
        assert_eq!(
            files.left().unwrap(),
            Vec::<String>::new(),
            "nothing was installed"
        );
        let theirs = ["conf/20-other.conflist", "bin/bridge", "bin/netweft-notes"];
        let ours = [
            "conf/10-netweft.conflist",
            "conf/.10-netweft.conflist.77",
            "bin/netweft",
            "bin/netweft.new-77",
            "bin/netweft-portmap",
            "bin/netweft-bandwidth",
            "bin/netweft-loopback",
            "run/node.json",
            "run/attachments/10.0.0.1",
        ];
        for name in theirs.iter().chain(&ours) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let loopback = dir.path().join("bin/loopback");
        symlink("netweft-loopback", &loopback).unwrap();
        assert_eq!(files.left().unwrap().len(), 9);
        files.close().unwrap();
        files.remove_rest().unwrap();
        assert_eq!(files.left().unwrap(), Vec::<String>::new());
        assert!(!loopback.is_symlink());
        for name in theirs {
            assert!(dir.path().join(name).exists(), "{name}");
        }
        files.close().unwrap();
        files.remove_rest().unwrap();
        // The host's own.
        fs::write(&loopback, "").unwrap();
        assert_eq!(files.left().unwrap(), Vec::<String>::new());
        files.remove_rest().unwrap();
        assert!(loopback.exists());
    }
}
