//! Keeping kernel parameters as they should be.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use tracing::info;

/// A parameter could not be set.
#[derive(Debug, thiserror::Error)]
#[error("set {path} to {value}")]
pub struct SysctlError {
    path: PathBuf,
    value: String,
    source: io::Error,
}

/// Set those of `wanted` (values by path below `root`) that differ. One failure does not stop the others.
pub fn ensure(root: &Path, wanted: &BTreeMap<String, String>) -> Vec<SysctlError> {
    wanted
        .iter()
        .filter_map(|(name, value)| ensure_one(&root.join(name), value).err())
        .collect()
}

fn ensure_one(path: &Path, value: &str) -> Result<(), SysctlError> {
    let failed = |source| SysctlError {
        path: path.to_owned(),
        value: value.to_owned(),
        source,
    };
    let found = std::fs::read_to_string(path).map_err(failed)?;
    if found.trim() == value {
        return Ok(());
    }
    std::fs::write(path, value).map_err(failed)?;
    info!(parameter = %path.display(), from = found.trim(), to = value, "kernel parameter set");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_written_and_failures_do_not_stop_the_rest() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("b"), "0\n").unwrap();
        let wanted = BTreeMap::from([("a/missing".into(), "1".into()), ("b".into(), "1".into())]);
        let errors = ensure(root.path(), &wanted);
        assert_eq!(errors.len(), 1);
        assert!(errors[0].to_string().contains("a/missing to 1"));
        assert_eq!(std::fs::read_to_string(root.path().join("b")).unwrap(), "1");
    }
}
