//! Embeds what is shipped with the program: every file below `templates/` and `fixtures/`.
//!
//! Writes `shipped.rs`, a table of paths and texts that `src/flow/shipped.rs` includes. A macro crate
//! (`include_dir`, `rust-embed`) would do nearly the same, but also embed `__pycache__` and hidden files, and
//! not notice a file that is added.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let mut files = Vec::new();
    for folder in ["templates", "fixtures"] {
        println!("cargo::rerun-if-changed={folder}");
        collect(&root.join(folder), folder, &mut files)?;
    }
    files.sort();
    let mut table = String::from("pub(super) const FILES: &[(&str, &str)] = &[\n");
    for (name, path) in files {
        writeln!(table, "    ({name:?}, include_str!({path:?})),").expect("a String grows");
    }
    table.push_str("];\n");
    fs::write(out.join("shipped.rs"), table)
}

/// Adds the files below `folder`, which is called `name` in the table. Leaves out what a fixture leaves out.
fn collect(folder: &Path, name: &str, files: &mut Vec<(String, PathBuf)>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let own = entry.file_name().into_string();
        let own = own.map_err(|name| io::Error::other(format!("{name:?} is not UTF-8")))?;
        if own.starts_with('.') || own == "__pycache__" {
            continue;
        }
        let name = format!("{name}/{own}");
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), &name, files)?;
        } else {
            files.push((name, entry.path()));
        }
    }
    Ok(())
}
