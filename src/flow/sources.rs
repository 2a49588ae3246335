//! Where a template and the files that it names are looked for.
//!
//! A template is a path, or a name: then it is looked for in `templates/` of the root and among the shipped
//! ones. What it names (suite, includes, script, fixture) is looked for beside it, then in `templates/` or
//! `fixtures/` of the root, then among what is shipped. The first place that has the name wins.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use crate::config::Layout;
use crate::error::{Error, Result};
use crate::text_file;

use super::place::{
    SourceFile, below, choice, closest, leads_out, names_in, no_file, shown, unreadable,
};
use super::shipped;

/// The template that a run names.
pub(super) fn template(layout: &Layout, name: &str) -> Result<SourceFile> {
    let candidates = candidates(layout, name);
    if let Some(found) = candidates.iter().find(|path| path.is_file()) {
        return SourceFile::read(found);
    }
    if let Some(error) = candidates.iter().find_map(|path| no_file(path)) {
        return Err(
            error.hint("a template is a .toml file: give its path, or its name in templates/")
        );
    }
    let is_name = !name.contains('/');
    let stem = name.strip_suffix(".toml").unwrap_or(name);
    let shipped = is_name.then(|| SourceFile::shipped("templates", &format!("{stem}.toml")));
    if let Some(file) = shipped.flatten() {
        return Ok(file);
    }
    let mut searched: Vec<String> = candidates
        .iter()
        .map(|path| shown(path).to_string())
        .collect();
    if is_name {
        searched.push("the shipped templates".to_owned());
    }
    let known = known_templates(layout);
    let stem = Path::new(stem).file_name().and_then(|stem| stem.to_str());
    Err(Error::usage(format!(
        "there is no template `{name}` (searched: {})",
        searched.join(", ")
    ))
    .hint(choice(stem.unwrap_or(name), "templates", &known)))
}

/// The files on the disk that a template's name can mean.
fn candidates(layout: &Layout, name: &str) -> Vec<PathBuf> {
    let templates = layout.templates();
    let given = PathBuf::from(name);
    let has_extension = name.ends_with(".toml");
    if !name.contains('/') {
        return match has_extension {
            // `three_step.toml` is as clear as `three_step`.
            true => vec![given, templates.join(name)],
            false => vec![templates.join(format!("{name}.toml"))],
        };
    }
    let mut paths = vec![given];
    if !has_extension {
        paths.push(PathBuf::from(format!("{name}.toml")));
    }
    // `nightly/chain` may be a folder of templates/, too. A path that leads out of it is not.
    let suffix = if has_extension { "" } else { ".toml" };
    paths.extend(below(&templates, &format!("{name}{suffix}")));
    paths
}

/// The names of the templates in `templates/` and of the shipped ones.
fn known_templates(layout: &Layout) -> Vec<String> {
    let mut known = names_in(&layout.templates(), |path| {
        let stem = path.file_name()?.to_str()?.strip_suffix(".toml")?;
        Some(stem.to_owned())
    });
    let shipped = shipped::below("templates").into_iter();
    known.extend(shipped.filter_map(|(name, _)| Some(name.strip_suffix(".toml")?.to_owned())));
    known.sort();
    known.dedup();
    known
}

/// A place where files are looked for by name.
#[derive(Debug, Clone)]
enum Place {
    /// A folder of the template's, or of the root.
    Folder { path: PathBuf, beside: bool },
    /// A folder of what is shipped: `templates` or `fixtures`.
    Shipped(&'static str),
}

/// The places of a template's files, in the order in which they are searched.
#[derive(Debug, Clone)]
pub(super) struct SearchPath(Vec<Place>);

/// What a name was found to be.
#[derive(Debug)]
pub(super) enum Found {
    File(SourceFile),
    /// A link whose target is outside of its folder.
    LeadsOut(PathBuf),
    /// A folder, a named pipe and so on.
    Other(PathBuf),
    Nothing,
}

/// A fixture's folder.
#[derive(Debug)]
pub(super) enum Folder {
    OnDisk(PathBuf),
    Shipped {
        shown: PathBuf,
        /// Path below the folder, and text.
        files: Vec<(&'static str, &'static str)>,
    },
}

impl SearchPath {
    /// For the suite, the script and the included files of a template.
    pub(super) fn of_template(layout: &Layout, template: &SourceFile) -> Self {
        let mut path = Self::beside(template);
        path.add(layout.templates(), false);
        path.0.push(Place::Shipped("templates"));
        path
    }

    /// For a template's fixture. A template in a folder `templates/` also has the folder `fixtures/` next
    /// to it, so that one that is given by its path brings its fixtures along.
    pub(super) fn of_fixture(layout: &Layout, template: &SourceFile) -> Self {
        let mut path = Self::beside(template);
        let folders = path.0.clone();
        for place in folders {
            if let Place::Folder { path: folder, .. } = place {
                path.0
                    .extend(sibling_fixtures(&folder).map(|path| Place::Folder {
                        path,
                        beside: false,
                    }));
            }
        }
        path.add(layout.fixtures(), false);
        path.0.push(Place::Shipped("fixtures"));
        path
    }

    /// The template's own folder, and that of its target where it is a link.
    fn beside(template: &SourceFile) -> Self {
        let mut path = Self(Vec::new());
        if let Some(file) = template.on_disk() {
            path.add(folder_of(file), true);
            let target = file.is_symlink().then(|| file.canonicalize().ok());
            if let Some(target) = target.flatten() {
                path.add(folder_of(&target), true);
            }
        }
        path
    }

    fn add(&mut self, folder: PathBuf, beside: bool) {
        let real = folder.canonicalize().ok();
        let known = self.0.iter().any(|place| match place {
            Place::Folder { path, .. } => {
                *path == folder || (real.is_some() && path.canonicalize().ok() == real)
            }
            Place::Shipped(_) => false,
        });
        if !known {
            self.0.push(Place::Folder {
                path: folder,
                beside,
            });
        }
    }

    /// The file with this name, which must not lead out of its folder ([`below`]).
    pub(super) fn file(&self, name: &str) -> Result<Found> {
        for place in &self.0 {
            let (folder, path) = match place {
                Place::Folder { path, .. } => match below(path, name) {
                    Some(file) => (path, file),
                    None => continue,
                },
                Place::Shipped(folder) => match SourceFile::shipped(folder, name) {
                    Some(file) => return Ok(Found::File(file)),
                    None => continue,
                },
            };
            match path.metadata() {
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) =>
                {
                    continue;
                }
                Err(error) => return Err(unreadable(&path, error)),
            }
            if text_file::other_kind(&path).is_some() {
                return Ok(Found::Other(path));
            }
            if leads_out(folder, &path) {
                return Ok(Found::LeadsOut(path));
            }
            return SourceFile::read(&path).map(Found::File);
        }
        Ok(Found::Nothing)
    }

    /// The folder with this name.
    pub(super) fn folder(&self, name: &str) -> Option<Folder> {
        self.0.iter().find_map(|place| match place {
            Place::Folder { path, .. } => {
                let path = below(path, name)?;
                path.is_dir().then_some(Folder::OnDisk(path))
            }
            Place::Shipped(folder) => {
                let path = format!("{folder}/{}", name.trim_end_matches('/'));
                let files = shipped::below(&path);
                (!files.is_empty()).then(|| Folder::Shipped {
                    shown: shipped::shown_path(&path),
                    files,
                })
            }
        })
    }

    /// The places, for an error that nothing was found.
    pub(super) fn searched(&self) -> String {
        let places = self.0.iter().map(|place| match place {
            Place::Folder { path, .. } if path == Path::new(".") => "./".to_owned(),
            Place::Folder { path, .. } => format!("{}/", shown(path)),
            Place::Shipped(folder) => format!("the shipped {folder}"),
        });
        places.collect::<Vec<_>>().join(", ")
    }

    /// The names at these places that `keep` lets pass, for a hint. Of what is beside a template, which may
    /// be anything, only a name that is near to `wrong`.
    pub(super) fn names(
        &self,
        wrong: &str,
        keep: impl Fn(&Path) -> bool,
        keep_shipped: impl Fn(&str) -> Option<String>,
    ) -> Vec<String> {
        let mut names = Vec::new();
        for place in &self.0 {
            match place {
                Place::Folder { path, beside } => {
                    let found = names_in(path, |path| {
                        keep(path).then(|| Some(path.file_name()?.to_str()?.to_owned()))?
                    });
                    let found = found.into_iter();
                    names.extend(
                        found.filter(|name| !beside || closest(wrong, &[name.as_str()]).is_some()),
                    );
                }
                Place::Shipped(folder) => {
                    let files = shipped::below(folder).into_iter();
                    names.extend(files.filter_map(|(path, _)| keep_shipped(path)));
                }
            }
        }
        names.sort();
        names.dedup();
        names
    }
}

/// The folder that holds a file.
fn folder_of(file: &Path) -> PathBuf {
    match file.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// The folder `fixtures/` next to a folder `templates/`.
fn sibling_fixtures(templates: &Path) -> Option<PathBuf> {
    let real = templates.canonicalize().ok()?;
    if real.file_name()? != "templates" {
        return None;
    }
    Some(match (templates.file_name(), templates.parent()) {
        (Some(_), Some(parent)) => parent.join("fixtures"),
        _ => templates.join("../fixtures"),
    })
}

/// The script that belongs to a template: recorded answers for the scripted engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScriptFile {
    /// What messages show, and if there is no text, the file to read.
    pub path: PathBuf,
    /// The text of a shipped script, which has no file.
    pub text: Option<String>,
}

/// Finds `TEMPLATE.script.jsonl`; of a link also by its target's name. Where there is none, it is the path
/// beside the template.
pub(super) fn script(layout: &Layout, template: &SourceFile) -> ScriptFile {
    let beside = template.path().with_extension("script.jsonl");
    let target = template.on_disk().filter(|file| file.is_symlink());
    let target =
        target.and_then(|file| Some(file.canonicalize().ok()?.with_extension("script.jsonl")));
    let search = SearchPath::of_template(layout, template);
    let find = |path: &PathBuf| match search.file(path.file_name()?.to_str()?).ok()? {
        Found::File(file) => Some(ScriptFile {
            path: file.path().to_owned(),
            text: file.on_disk().is_none().then(|| file.text().to_owned()),
        }),
        // Whoever reads it says what is wrong with it.
        Found::LeadsOut(path) | Found::Other(path) => Some(ScriptFile { path, text: None }),
        Found::Nothing => None,
    };
    let found = std::iter::once(&beside).chain(&target).find_map(find);
    found.unwrap_or(ScriptFile {
        path: beside,
        text: None,
    })
}
