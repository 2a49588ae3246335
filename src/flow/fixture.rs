//! Fixtures: the data that a template works on, either a folder of text files or a file of rows.

use std::path::{Path, PathBuf};

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};
use minijinja::Value;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use walkdir::{DirEntry, WalkDir};

use crate::config::Layout;
use crate::error::{Error, Result};
use crate::hash::PartsHasher;
use crate::text_file;

use super::manifest::FixtureKeys;
use super::place::{SourceFile, below, choice, no_file, read, shown, unreadable, utf8};
use super::rows;
use super::sources::{Folder, Found, SearchPath};

/// The size of the included part of a fixture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct FixtureSize {
    pub bytes: u64,
    /// Number of included files.
    pub files: usize,
}

#[derive(Debug, Default)]
pub(super) struct Fixture {
    content: Content,
    /// SHA-256 of the relative paths and contents of the included files.
    pub(super) hash: String,
    pub(super) paths: Vec<PathBuf>,
    pub(super) size: FixtureSize,
}

#[derive(Debug, Default)]
enum Content {
    /// The template has no fixture.
    #[default]
    None,
    /// Sorted by path.
    Files(Vec<File>),
    Rows(Vec<Value>),
}

#[derive(Debug)]
struct File {
    /// Relative to the fixture's folder, with `/` as the separator.
    path: String,
    text: String,
}

impl Fixture {
    /// Loads the fixture named by the template `file`.
    pub(super) fn load(
        layout: &Layout,
        file: &SourceFile,
        keys: Option<&Spanned<FixtureKeys>>,
    ) -> Result<Self> {
        let Some(place) = keys else {
            return Ok(Self::of(Content::None, &[]));
        };
        let keys = place.get_ref();
        match (&keys.dir, &keys.rows) {
            (Some(dir), None) => {
                let found = find_folder(&SearchPath::of_fixture(layout, file), file, dir)?;
                let (folder, files) = match found {
                    Folder::OnDisk(folder) => {
                        let files = read_folder(&folder, file, keys.include.as_ref())?;
                        (folder, files)
                    }
                    Folder::Shipped { shown, files } => {
                        let files = shipped_files(&shown, files, file, keys.include.as_ref())?;
                        (shown, files)
                    }
                };
                if files.is_empty() {
                    let what = format!("the folder {} has no files", shown(&folder));
                    return Err(file
                        .error(dir.span().start, what)
                        .hint("hidden files and __pycache__ are ignored"));
                }
                let parts: Vec<_> = files
                    .iter()
                    .map(|file| (file.path.as_str(), file.text.as_str()))
                    .collect();
                let measured = Self::of(Content::None, &parts);
                let paths = files.iter().map(|file| folder.join(&file.path));
                Ok(Self {
                    paths: paths.collect(),
                    content: Content::Files(files),
                    ..measured
                })
            }
            (None, Some(rows)) if keys.include.is_none() => {
                let source = find_rows(&SearchPath::of_fixture(layout, file), file, rows)?;
                let values = rows::objects(&source)?;
                if values.is_empty() {
                    return Err(source
                        .error(0, "the fixture has no rows")
                        .hint("write one JSON object per line"));
                }
                let values = values.into_iter().map(|object| object.value).collect();
                let content = Content::Rows(values);
                Ok(Self {
                    paths: vec![source.path().to_owned()],
                    ..Self::of(content, &[(rows.get_ref(), source.text())])
                })
            }
            _ => Err(file
                .error(
                    place.span().start,
                    "a fixture is either a folder (`dir`, with `include`) or a file of rows (`rows`)",
                )
                .hint("fixture = { dir = \"helpdesk\" } or fixture = { rows = \"tickets.jsonl\" }")),
        }
    }

    fn of(content: Content, parts: &[(&str, &str)]) -> Self {
        let mut hasher = PartsHasher::default();
        hasher.part(match content {
            Content::Rows(_) => b"rows",
            Content::None | Content::Files(_) => b"files",
        });
        for (path, text) in parts {
            hasher.part(path.as_bytes());
            hasher.part(text.as_bytes());
        }
        Self {
            content,
            hash: hasher.finish(),
            paths: Vec::new(),
            size: FixtureSize {
                bytes: parts.iter().map(|(_, text)| text.len() as u64).sum(),
                files: parts.len(),
            },
        }
    }

    /// The `fixture` variable: `text` and `files` for a folder, `rows` for a file of rows.
    pub(super) fn value(&self) -> Option<Value> {
        match &self.content {
            Content::None => None,
            Content::Rows(rows) => Some(Value::from_pairs([("rows", rows.clone())])),
            Content::Files(files) => {
                let list: Vec<Value> = files
                    .iter()
                    .map(|file| {
                        Value::from_pairs([
                            ("path", Value::from(&file.path)),
                            ("text", Value::from(&file.text)),
                            ("bytes", Value::from(file.text.len())),
                        ])
                    })
                    .collect();
                Some(Value::from_pairs([
                    ("text", Value::from(joined(files))),
                    ("files", Value::from(list)),
                ]))
            }
        }
    }

    /// The attributes of [`value`](Self::value).
    pub(super) fn members(&self) -> &'static [&'static str] {
        match self.content {
            Content::None => &[],
            Content::Files(_) => &["text", "files"],
            Content::Rows(_) => &["rows"],
        }
    }
}

/// Concatenates the files, each after a header line with its path.
fn joined(files: &[File]) -> String {
    let mut text = String::new();
    for file in files {
        text.push_str(&format!("===== FILE: {} =====\n", file.path));
        text.push_str(&file.text);
        if !text.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

/// The folder of a fixture.
fn find_folder(search: &SearchPath, file: &SourceFile, dir: &Spanned<String>) -> Result<Folder> {
    check_name(file, dir, "folder")?;
    search.folder(dir.get_ref()).ok_or_else(|| {
        let of_path = |path: &str| Some(path.split_once('/')?.0.to_owned());
        let known = search.names(dir.get_ref(), Path::is_dir, of_path);
        not_found(search, file, dir, "folder", &known)
    })
}

/// The file of a fixture of rows.
fn find_rows(search: &SearchPath, file: &SourceFile, rows: &Spanned<String>) -> Result<SourceFile> {
    check_name(file, rows, "file")?;
    let at = rows.span().start;
    match search.file(rows.get_ref())? {
        Found::File(source) => Ok(source),
        Found::LeadsOut(path) => {
            let what = format!("{} is a symlink to outside the fixtures", shown(&path));
            Err(file.error(at, what).hint("put the file itself there"))
        }
        Found::Other(path) => match no_file(&path) {
            Some(error) => Err(file
                .error(at, error)
                .hint("`rows` names a file of JSON Lines; a folder is a fixture's `dir`")),
            // It became one since.
            None => SourceFile::read(&path),
        },
        Found::Nothing => {
            let of_path = |path: &str| (!path.contains('/')).then(|| path.to_owned());
            let known = search.names(rows.get_ref(), Path::is_file, of_path);
            Err(not_found(search, file, rows, "file", &known))
        }
    }
}

fn check_name(file: &SourceFile, name: &Spanned<String>, kind: &str) -> Result<()> {
    if below(Path::new(""), name.get_ref()).is_some() {
        return Ok(());
    }
    let what = format!("the fixture `{}` leads out of its folder", name.get_ref());
    Err(file.error(name.span().start, what).hint(format!(
        "put the {kind} beside the template or into fixtures/, and give its name"
    )))
}

fn not_found(
    search: &SearchPath,
    file: &SourceFile,
    name: &Spanned<String>,
    kind: &str,
    known: &[String],
) -> Error {
    let what = format!(
        "there is no fixture {kind} `{}` (searched: {})",
        name.get_ref(),
        search.searched()
    );
    file.error(name.span().start, what).hint(choice(
        name.get_ref(),
        &format!("fixture {kind}s"),
        known,
    ))
}

/// The included files of a shipped folder, which are sorted already.
fn shipped_files(
    folder: &Path,
    files: Vec<(&'static str, &'static str)>,
    template: &SourceFile,
    include: Option<&Spanned<Vec<Spanned<String>>>>,
) -> Result<Vec<File>> {
    let mut selection = Selection::new(template, include)?;
    let mut included = Vec::new();
    for (path, text) in files {
        if !selection.includes(path) {
            continue;
        }
        included.push(File {
            path: path.to_owned(),
            text: text_file::without_mark(text.to_owned()),
        });
    }
    selection.check_all_used(template, folder)?;
    Ok(included)
}

/// Reads the included files of a folder, sorted bytewise by path.
///
/// Hidden files and folders (with a leading dot, such as `.git`) and `__pycache__` are skipped. Symlinks are
/// followed to files inside the folder; any other symlink is an error.
fn read_folder(
    folder: &Path,
    template: &SourceFile,
    include: Option<&Spanned<Vec<Spanned<String>>>>,
) -> Result<Vec<File>> {
    let mut selection = Selection::new(template, include)?;
    let mut paths = Vec::new();
    let is_kept = |entry: &DirEntry| entry.depth() == 0 || !is_left_out(entry);
    // Follow a symlink at the top, but not below.
    let root = folder
        .canonicalize()
        .map_err(|error| unreadable(folder, error))?;
    for entry in WalkDir::new(&root).into_iter().filter_entry(is_kept) {
        let entry = entry.map_err(|error| not_walked(folder, error))?;
        if entry.file_type().is_dir() {
            continue;
        }
        let below_root = entry.path().strip_prefix(&root).unwrap_or(entry.path());
        let shown_path = folder.join(below_root);
        let Some(path) = below_root.to_str() else {
            return Err(
                Error::usage(format!("{}: its name is not UTF-8", shown(&shown_path)))
                    .hint("rename the file: its path is part of the prompt"),
            );
        };
        // Do not skip a symlink to a folder: files in it could match.
        if !selection.includes(path) && !entry.path().is_dir() {
            continue;
        }
        check_kind(&root, &entry, &shown_path)?;
        paths.push(path.to_owned());
    }
    selection.check_all_used(template, folder)?;
    paths.sort_unstable();
    let read_one = |path: String| {
        let shown_path = folder.join(&path);
        let text = utf8(&shown_path, read(&shown_path)?)?;
        Ok(File { path, text })
    };
    paths.into_iter().map(read_one).collect()
}

fn is_left_out(entry: &DirEntry) -> bool {
    let name = entry.file_name().as_encoded_bytes();
    name.starts_with(b".") || name == b"__pycache__"
}

/// Accepts regular files, and symlinks to regular files inside the folder.
fn check_kind(root: &Path, entry: &DirEntry, shown_path: &Path) -> Result<()> {
    let error = |what: &str| Err(Error::usage(format!("{}: {what}", shown(shown_path))));
    let hint = "replace it by a file, or leave it out with `include`";
    if entry.file_type().is_symlink() {
        let target = entry.path().canonicalize();
        let target = target.map_err(|source| {
            let what = format!("{}: cannot be read", shown(shown_path));
            Error::usage(what).hint(hint).caused_by(source)
        })?;
        if !target.starts_with(root) {
            return error("a symlink to outside the fixture")
                .map_err(|error: Error| error.hint(hint));
        }
        if !target.is_file() {
            return error("a symlink to something other than a file")
                .map_err(|error: Error| error.hint(hint));
        }
    } else if !entry.file_type().is_file() {
        return error("not a file").map_err(|error: Error| error.hint(hint));
    }
    Ok(())
}

fn not_walked(folder: &Path, error: walkdir::Error) -> Error {
    let path = error.path().unwrap_or(folder).to_owned();
    match error.into_io_error() {
        Some(error) => unreadable(&path, error),
        None => Error::usage(format!("{}: cannot be read", shown(&path))),
    }
}

/// The files that `include` selects (all without it), and which of its globs matched any.
struct Selection {
    patterns: Option<Patterns>,
    used: Vec<bool>,
}

impl Selection {
    fn new(template: &SourceFile, include: Option<&Spanned<Vec<Spanned<String>>>>) -> Result<Self> {
        let patterns = include
            .map(|include| Patterns::new(template, include))
            .transpose()?;
        let globs = patterns.as_ref().map_or(0, |patterns| patterns.spans.len());
        Ok(Self {
            patterns,
            used: vec![false; globs],
        })
    }

    fn includes(&mut self, path: &str) -> bool {
        let Some(patterns) = &self.patterns else {
            return true;
        };
        let matching = patterns.set.matches(path);
        matching.iter().for_each(|index| self.used[*index] = true);
        !matching.is_empty()
    }

    /// # Errors
    /// The first glob that no path matched.
    fn check_all_used(&self, template: &SourceFile, folder: &Path) -> Result<()> {
        match (&self.patterns, self.used.iter().position(|used| !used)) {
            (Some(patterns), Some(unused)) => {
                Err(patterns.matches_nothing(template, unused, folder))
            }
            _ => Ok(()),
        }
    }
}

/// The globs in `include`. `*` does not cross folders, `**` does.
struct Patterns {
    set: GlobSet,
    spans: Vec<Spanned<String>>,
    list_start: usize,
}

impl Patterns {
    fn new(template: &SourceFile, include: &Spanned<Vec<Spanned<String>>>) -> Result<Self> {
        if include.get_ref().is_empty() {
            return Err(template
                .error(include.span().start, "`include` is empty")
                .hint("omit it to include all files, or list some: include = [\"**/*.py\"]"));
        }
        let mut set = GlobSetBuilder::new();
        let invalid = |pattern: &Spanned<String>, what: String| {
            template
                .error(pattern.span().start, format!("bad glob `{}`: {what}", pattern.get_ref()))
                .hint("globs are relative to the fixture's folder, as in \"**/*.py\" or \"docs/{a,b}.md\"")
        };
        for pattern in include.get_ref() {
            if below(Path::new(""), pattern.get_ref()).is_none() {
                return Err(invalid(pattern, "it is outside of the fixture".into()));
            }
            let glob = GlobBuilder::new(pattern.get_ref())
                .literal_separator(true)
                .build()
                .map_err(|error| invalid(pattern, error.kind().to_string()))?;
            set.add(glob);
        }
        let start = include.span().start;
        let set = set.build().map_err(|error| {
            template.error(start, format!("the globs cannot be used together: {error}"))
        })?;
        Ok(Self {
            set,
            spans: include.get_ref().clone(),
            list_start: start,
        })
    }

    fn matches_nothing(&self, template: &SourceFile, index: usize, folder: &Path) -> Error {
        let pattern = self.spans.get(index);
        let at = pattern.map_or(self.list_start, |pattern| pattern.span().start);
        let text = pattern.map_or("", |pattern| pattern.get_ref());
        template
            .error(
                at,
                format!("`{text}` matches no file in {}/", shown(folder)),
            )
            .hint(
                "`*` does not cross folders, `**/` does; hidden files and __pycache__ are ignored",
            )
    }
}
