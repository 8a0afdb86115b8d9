//! The files of netweft on a node.

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

/// The directories of the files.
pub struct Files {
    run_dir: PathBuf,
    conf_dir: PathBuf,
    bin_dir: PathBuf,
}

impl Files {
    /// The directories of a node.
    pub fn new(args: &CleanArgs) -> Self {
        Self {
            run_dir: args.paths.run_dir.clone(),
            conf_dir: args.paths.cni_conf_dir.clone(),
            bin_dir: args.cni_bin_dir.clone(),
        }
    }

    /// Removes the files that new pods need: the CNI configuration, then the configuration of the plugin.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove_configurations(&self) -> io::Result<()> {
        for file in self.configurations()? {
            remove(&file)?;
        }
        remove(&self.run_dir.join(node::FILE))
    }

    /// Removes the plugins, and the run directory with its content.
    ///
    /// # Errors
    /// A file cannot be removed.
    pub fn remove_rest(&self) -> io::Result<()> {
        for file in self.plugins()? {
            remove(&file)?;
        }
        if self.run_dir.exists() {
            fs::remove_dir_all(&self.run_dir)?;
            println!("Removed {}.", self.run_dir.display());
        }
        Ok(())
    }

    /// The remaining files, one per line.
    ///
    /// # Errors
    /// A directory cannot be read.
    pub fn remaining(&self) -> io::Result<Vec<String>> {
        let mut files = self.configurations()?;
        files.extend(self.plugins()?);
        files.extend(self.run_dir.exists().then(|| self.run_dir.clone()));
        let line = |file: &PathBuf| format!("{} exists.", file.display());
        Ok(files.iter().map(line).collect())
    }

    fn configurations(&self) -> io::Result<Vec<PathBuf>> {
        files_with(&self.conf_dir, |name| {
            name == CONFLIST_FILE || atomic_file::is_temporary(CONFLIST_FILE, name)
        })
    }

    fn plugins(&self) -> io::Result<Vec<PathBuf>> {
        let plugins = [PLUGIN, PORTMAP_PLUGIN, BANDWIDTH_PLUGIN, LOOPBACK_PLUGIN];
        let loopback = self.bin_dir.join(RUNTIME_LOOPBACK);
        let is_linked = install::is_loopback_link(&loopback);
        files_with(&self.bin_dir, |name| {
            let mut plugins = plugins.iter();
            plugins.any(|plugin| name == *plugin || install::is_temporary(plugin, name))
                || is_linked && name == RUNTIME_LOOPBACK
        })
    }
}

/// The files in a directory whose names match; none if the directory does not exist.
fn files_with(dir: &Path, matches: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let mut files = Vec::new();
    for entry in entries {
        let entry = entry?;
        if entry.file_name().to_str().is_some_and(&matches) {
            files.push(entry.path());
        }
    }
    Ok(files)
}

fn remove(file: &Path) -> io::Result<()> {
    match fs::remove_file(file) {
        Ok(()) => {
            println!("Removed {}.", file.display());
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
            files.remaining().unwrap(),
            Vec::<String>::new(),
            "nothing was installed"
        );
        let foreign = ["conf/20-other.conflist", "bin/bridge", "bin/netweft-notes"];
        let own = [
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
        for name in foreign.iter().chain(&own) {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let loopback = dir.path().join("bin/loopback");
        symlink("netweft-loopback", &loopback).unwrap();
        assert_eq!(files.remaining().unwrap().len(), 9);
        files.remove_configurations().unwrap();
        files.remove_rest().unwrap();
        assert_eq!(files.remaining().unwrap(), Vec::<String>::new());
        assert!(!loopback.is_symlink());
        for name in foreign {
            assert!(dir.path().join(name).exists(), "{name}");
        }
        files.remove_configurations().unwrap();
        files.remove_rest().unwrap();
        // A plugin of the host.
        fs::write(&loopback, "").unwrap();
        assert_eq!(files.remaining().unwrap(), Vec::<String>::new());
        files.remove_rest().unwrap();
        assert!(loopback.exists());
    }
}
