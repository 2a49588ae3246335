//! How a pool is made, and the Python that it found.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::thread;

/// The variables that Python may need to be found and to load its libraries. All others stay out, and
/// with them whatever secrets the environment holds.
pub const KEPT_VARIABLES: [&str; 3] = ["PATH", "HOME", "LD_LIBRARY_PATH"];

/// How a pool is made.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The Python to run: a name to look for in `PATH`, or a path.
    pub python: PathBuf,
    /// The environment that Python and the programs have: `PATH`, `HOME` and `LD_LIBRARY_PATH` at
    /// most, see [`Settings::new`].
    pub environment: BTreeMap<String, OsString>,
    /// Modules to load once, where they are installed (numpy).
    pub preload: Vec<String>,
    /// Further modules that programs may want; which of them are not installed is looked up, no more.
    pub wanted: Vec<String>,
    /// Python that is run once after that, such as to use what modules load lazily; empty for none. What
    /// it fails at is no error: the modules are there or not.
    pub warm_up: String,
    /// How many programs may run at a time; at least 1.
    pub parallel: usize,
    /// Address space that a program may have (bytes), Python and its modules included.
    pub memory: u64,
    /// The longest result that is taken (bytes); a program that writes more is killed.
    pub longest_result: usize,
    /// Run programs without Landlock and seccomp where this machine lacks them, for programs that
    /// are trusted. Otherwise such a machine is refused.
    pub unsafe_eval: bool,
}

impl Settings {
    /// `python` with numpy where it is installed, all processors but one, 2 GiB, results up to
    /// 1 MiB, and a sandbox. Of `variables`, the caller's environment, only the three are kept that
    /// Python needs.
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

/// What kind of Python the evaluations run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PythonInfo {
    /// Its version, as `3.12.3`.
    pub version: String,
    /// The optional modules that it has loaded, with their versions.
    pub loaded: BTreeMap<String, String>,
    /// Those of [`Settings::wanted`] that it lacks.
    pub missing: Vec<String>,
    /// Whether programs find the same addresses every time; a container may forbid it.
    pub fixed_addresses: bool,
    /// Whether programs are run in the sandbox; not so with [`Settings::unsafe_eval`] on a machine that
    /// has none.
    pub sandboxed: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_python_needs_is_kept_of_the_environment() {
        let variables = [("PATH", "/bin"), ("TOKEN", "secret"), ("HOME", "/home/me")];
        let variables = variables.map(|(name, value)| (name.into(), value.into()));
        let kept = Settings::new("python3", variables).environment;
        let names: Vec<&String> = kept.keys().collect();
        assert_eq!(names, ["HOME", "PATH"]);
    }
}
