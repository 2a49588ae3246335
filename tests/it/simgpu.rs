//! The simulated GPU (`tests/simgpu`).

use std::path::PathBuf;
use std::process::Command;

/// The folder of the simulated driver; `None`, and a line, where it cannot be built (in CI: a failure).
pub(crate) fn driver(arguments: &[&str]) -> Option<PathBuf> {
    let output = Command::new("bash")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("scripts/simgpu.sh")
        .args(arguments)
        .output()
        .expect("bash starts");
    if output.status.success() {
        let folder = String::from_utf8_lossy(&output.stdout);
        return Some(PathBuf::from(folder.trim()));
    }
    let reason = String::from_utf8_lossy(&output.stderr);
    assert!(std::env::var_os("CI").is_none(), "{reason}");
    println!("skipped: the simulated GPU cannot be built: {reason}");
    None
}
