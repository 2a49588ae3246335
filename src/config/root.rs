//! The root: the folder that holds `templates/` and `fixtures/`, and gets `flows/` and `results/`.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::names::settings;
use crate::error::{Error, Result};

settings! {
    /// Where the files of a job are. Paths that the user gives are relative to the working directory, not to
    /// the root.
    #[derive(Debug, Clone, PartialEq, Eq, Serialize)]
    pub struct Layout {
        /// Absolute, or relative to the working directory.
        pub root: PathBuf,
    }
}

impl Layout {
    /// Templates, suites and scripts.
    pub fn templates(&self) -> PathBuf {
        self.place("templates")
    }

    /// Folders and files of rows that templates work on.
    pub fn fixtures(&self) -> PathBuf {
        self.place("fixtures")
    }

    /// Expanded flows and their cache.
    pub fn flows(&self) -> PathBuf {
        self.place("flows")
    }

    /// Where runs are kept, unless `OUT` names another folder.
    pub fn results(&self) -> PathBuf {
        self.place("results")
    }

    /// Refuses a root that is not a folder. It is not created: a mistyped root would become a new folder.
    ///
    /// # Errors
    /// Exit code 2.
    pub fn check(&self) -> Result<()> {
        let root = self.root.display();
        if self.root.is_dir() {
            return Ok(());
        }
        let error = match self.root.exists() {
            true => Error::usage(format!("the root {root} is not a folder")),
            false => Error::usage(format!("there is no folder {root} to be the root")),
        };
        Err(error.hint(format!(
            "--root (FLOWBENCH_ROOT) names the folder for flows/ and results/; \
             `flowbench init {root}` makes one"
        )))
    }

    /// The script that starts this program, if the root is a checkout.
    pub fn run_script(&self) -> Option<PathBuf> {
        let is_checkout = self.root.join("src/flow/shipped.rs").is_file();
        Some(self.place("run.sh")).filter(|script| is_checkout && script.is_file())
    }

    /// `root/name`, without the `./` that nobody would type.
    fn place(&self, name: &str) -> PathBuf {
        if self.root == Path::new(".") {
            PathBuf::from(name)
        } else {
            self.root.join(name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_a_folder_that_exists() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |root: PathBuf| Layout { root };
        assert!(at(folder.path().to_owned()).check().is_ok());
        std::fs::write(folder.path().join("file"), "").expect("writable");
        let file = at(folder.path().join("file")).check();
        assert!(file.is_err_and(|error| error.to_string().ends_with("is not a folder")));
        let none = at(folder.path().join("none")).check();
        assert!(none.is_err_and(|error| error.to_string().starts_with("there is no folder")));
        std::os::unix::fs::symlink(".", folder.path().join("link")).expect("a link");
        assert!(at(folder.path().join("link")).check().is_ok());
    }

    #[test]
    fn the_working_directory_is_not_spelled_out() {
        let here = Layout { root: ".".into() };
        assert_eq!(here.results(), Path::new("results"));
        let there = Layout { root: "a/b".into() };
        assert_eq!(there.flows(), Path::new("a/b/flows"));
    }

    #[test]
    fn only_a_checkout_has_our_run_sh() {
        let checkout = Layout {
            root: env!("CARGO_MANIFEST_DIR").into(),
        };
        assert!(checkout.run_script().is_some_and(|path| path.is_absolute()));
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("run.sh"), "").expect("writable");
        let other = Layout {
            root: folder.path().into(),
        };
        assert_eq!(other.run_script(), None);
    }
}
