//! The templates, suites, scripts and fixtures that are embedded in the program (`build.rs`).

use std::path::{Path, PathBuf};

use serde::Deserialize;

include!(concat!(env!("OUT_DIR"), "/shipped.rs"));

/// First part of the path that messages and records show for an embedded file. No file on the disk is
/// looked for under it.
const PREFIX: &str = "<shipped>";

/// The text of an embedded file, by its path in the repository (`templates/three_step.toml`).
pub(super) fn text(path: &str) -> Option<&'static str> {
    let index = FILES.binary_search_by_key(&path, |(known, _)| known).ok()?;
    FILES.get(index).map(|(_, text)| *text)
}

/// The embedded files below a folder, each with its path below that folder, sorted by it.
pub(super) fn below(folder: &str) -> Vec<(&'static str, &'static str)> {
    FILES
        .iter()
        .filter_map(|(path, text)| {
            let below = path.strip_prefix(folder)?.strip_prefix('/')?;
            Some((below, *text))
        })
        .collect()
}

/// The path that messages show for an embedded file.
pub(super) fn shown_path(path: &str) -> PathBuf {
    Path::new(PREFIX).join(path)
}

/// Whether a path is one of [`shown_path`].
pub(super) fn is_shown_path(path: &Path) -> bool {
    path.starts_with(PREFIX)
}

/// A template that is embedded in the program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shipped {
    /// The name that `--template` takes.
    pub name: &'static str,
    /// Empty if the template has none.
    pub description: String,
    suite: Option<String>,
    fixture: Option<String>,
}

/// The keys of a template that say what else belongs to it.
#[derive(Deserialize)]
struct Keys {
    #[serde(default)]
    description: String,
    suite: Option<String>,
    fixture: Option<FixtureKeys>,
}

#[derive(Deserialize)]
struct FixtureKeys {
    dir: Option<String>,
    rows: Option<String>,
}

impl Shipped {
    /// All of them, sorted by name.
    pub fn all() -> Vec<Self> {
        below("templates")
            .into_iter()
            .filter_map(|(file, text)| {
                let keys: Keys = toml::from_str(text).ok()?;
                Some(Self {
                    name: file.strip_suffix(".toml")?,
                    description: keys.description,
                    suite: keys.suite,
                    fixture: keys
                        .fixture
                        .and_then(|fixture| fixture.dir.or(fixture.rows)),
                })
            })
            .collect()
    }

    /// Everything that it needs: template, suite, script, and its fixture's folder. Paths are those of
    /// the repository (`templates/…`, `fixtures/…`).
    pub fn files(&self) -> Vec<(&'static str, &'static str)> {
        let named = |suffix: &str| format!("templates/{}.{suffix}", self.name);
        let suite = self.suite.iter().map(|suite| format!("templates/{suite}"));
        let mut wanted = vec![named("toml"), named("script.jsonl")];
        wanted.extend(suite);
        let fixture = self.fixture.as_ref().map(|name| format!("fixtures/{name}"));
        let is_wanted = |path: &str| {
            let in_fixture = |fixture: &String| {
                path.strip_prefix(fixture.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
            };
            wanted.iter().any(|name| name == path) || fixture.as_ref().is_some_and(in_fixture)
        };
        (FILES.iter().copied())
            .filter(|(path, _)| is_wanted(path))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_holds_what_the_repository_holds() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(FILES.is_sorted_by_key(|(path, _)| path));
        for (path, text) in FILES {
            let on_disk = std::fs::read_to_string(root.join(path)).expect("it was embedded");
            assert_eq!(&on_disk, text, "{path}");
        }
        for folder in ["templates", "fixtures"] {
            let files = walkdir::WalkDir::new(root.join(folder)).into_iter();
            let files =
                files.filter_map(|entry| entry.ok().filter(|entry| entry.file_type().is_file()));
            let embedded = |path: &Path| {
                let below = path.strip_prefix(root).expect("below the root");
                text(below.to_str().expect("UTF-8")).is_some()
            };
            for file in files {
                let hidden = file.path().to_string_lossy().contains("__pycache__");
                assert!(hidden || embedded(file.path()), "{:?}", file.path());
            }
        }
    }

    #[test]
    fn a_template_names_all_that_it_needs() {
        let all = Shipped::all();
        let names: Vec<&str> = all.iter().map(|shipped| shipped.name).collect();
        assert_eq!(
            names,
            [
                "evolve_packing",
                "math_judge",
                "three_step",
                "three_step_full"
            ]
        );
        assert!(all.iter().all(|shipped| !shipped.description.is_empty()));
        let files: Vec<&str> = all[2].files().into_iter().map(|(path, _)| path).collect();
        assert!(files.contains(&"fixtures/helpdesk/src/helpdesk/limits.py"));
        let templates: Vec<&&str> = (files.iter())
            .filter(|path| path.starts_with("templates/"))
            .collect();
        assert_eq!(
            templates,
            [
                &"templates/three_step.script.jsonl",
                &"templates/three_step.suite.jsonl",
                &"templates/three_step.toml"
            ]
        );
        assert_eq!(all[0].files().len(), 2, "no suite, no fixture");
    }
}
