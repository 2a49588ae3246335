//! The settings of a pool, and the Python it found.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;

/// The variables that Python may need to be found and to load its libraries. All others are withheld, since
/// the environment may hold secrets.
pub const KEPT_VARIABLES: [&str; 3] = ["PATH", "HOME", "LD_LIBRARY_PATH"];

#[derive(Debug, Clone)]
pub struct Settings {
    /// A name to look up in `PATH`, or a path.
    pub python: PathBuf,
    /// The environment of Python and the programs: at most `PATH`, `HOME` and `LD_LIBRARY_PATH`, see
    /// [`Settings::new`].
    pub environment: BTreeMap<String, OsString>,
    /// Modules to load once, if installed (numpy).
    pub preload: Vec<String>,
    /// More modules that programs may import. They are not loaded, only checked for being installed.
    pub wanted: Vec<String>,
    /// Python code to run once after that, for example to trigger lazy loading; empty for none. Errors are
    /// ignored, since a module may be missing.
    pub warm_up: String,
    /// Maximum number of concurrent programs; at least 1.
    pub parallel: usize,
    /// Address space of a program (bytes), including Python and its modules.
    pub memory: u64,
    /// The longest result accepted (bytes); a program that writes more is killed.
    pub longest_result: usize,
    /// Run programs without Landlock and seccomp if this machine lacks them, for trusted programs. Without
    /// this setting such a machine is refused.
    pub unsafe_eval: bool,
}

impl Settings {
    /// Defaults: `python` with numpy if installed, all processors but one, 2 GiB, results up to 1 MiB, and
    /// a sandbox. Of `variables`, the caller's environment, only [`KEPT_VARIABLES`] are kept.
    pub fn new(
        python: impl Into<PathBuf>,
        variables: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let kept = variables.into_iter().filter_map(|(name, value)| {
            let name = name.into_string().ok()?;
            let is_kept = KEPT_VARIABLES.contains(&name.as_str());
            is_kept.then_some((name, value))
        });
        let processors = thread::available_parallelism().map_or(1, usize::from);
        Self {
            python: python.into(),
            environment: kept.collect(),
            preload: vec!["numpy".to_owned()],
            wanted: Vec::new(),
            warm_up: String::new(),
            parallel: (processors - 1).max(1),
            memory: 2 << 30,
            longest_result: 1 << 20,
            unsafe_eval: false,
        }
    }
}

/// The Python that runs the evaluations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonInfo {
    /// For example `3.12.3`.
    pub version: String,
    /// The optional modules it has loaded, with their versions.
    pub loaded: BTreeMap<String, String>,
    /// Those of [`Settings::wanted`] that are not installed.
    pub missing: Vec<String>,
    /// Whether address randomization is off for programs; a container may forbid that.
    pub fixed_addresses: bool,
    /// Whether programs run in the sandbox. False only with [`Settings::unsafe_eval`] on a machine that has
    /// none.
    pub sandboxed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_variables_that_python_needs_are_kept() {
        let variables = [("PATH", "/bin"), ("TOKEN", "secret"), ("HOME", "/home/me")];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let kept = Settings::new("python3", variables).environment;
        let names: Vec<&String> = kept.keys().collect();
        assert_eq!(names, ["HOME", "PATH"]);
    }
}
