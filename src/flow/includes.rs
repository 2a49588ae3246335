//! Finds the files that a template's texts include (`{% include "rules.txt" %}`). This happens before
//! rendering, because the files are part of the template's hash.

use std::collections::BTreeMap;

use crate::error::Result;

use super::place::SourceFile;
use super::sources::{Found, SearchPath};

/// The included files, by the name used in the template.
pub(super) type Includes = BTreeMap<String, SourceFile>;

/// Reads the files that `texts` include, transitively, from the places of `search`.
///
/// Every string in an `include`, `import`, `from` or `extends` tag counts as a name. Files that do not exist
/// or lie outside the folder are skipped; they cause an error if a render needs them.
pub(super) fn collect<'a>(
    search: &SearchPath,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Includes> {
    let mut includes = Includes::new();
    let mut names: Vec<String> = texts.into_iter().flat_map(names).collect();
    while let Some(name) = names.pop() {
        if includes.contains_key(&name) {
            continue;
        }
        if let Some(file) = read(search, &name)? {
            names.extend(self::names(file.text()));
            includes.insert(name, file);
        }
    }
    Ok(includes)
}

fn read(search: &SearchPath, name: &str) -> Result<Option<SourceFile>> {
    match search.file(name)? {
        Found::File(file) => Ok(Some(file.with_line_feeds())),
        Found::Other(path) if !path.is_dir() => SourceFile::read(&path).map(Some),
        Found::Other(_) | Found::LeadsOut(_) | Found::Nothing => Ok(None),
    }
}

/// The strings in tags that load another file.
fn names(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    for tag in text.split("{%").skip(1) {
        let tag = tag.trim_start_matches(['-', '+']).trim_start();
        let keyword = tag.split(|c: char| !c.is_ascii_alphabetic()).next();
        if let Some("include" | "import" | "from" | "extends") = keyword {
            strings(tag, &mut names);
        }
    }
    names
}

/// Appends the quoted strings up to the end of the tag.
fn strings(tag: &str, names: &mut Vec<String>) {
    let mut rest = tag;
    while let Some(at) = rest.find(['"', '\'', '%']) {
        if rest[at..].starts_with("%}") {
            return;
        }
        let mark = &rest[at..=at];
        rest = &rest[at + 1..];
        if mark != "%" {
            let Some(end) = rest.find(mark) else { return };
            names.push(rest[..end].to_owned());
            rest = &rest[end + 1..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_only_in_tags_that_load_files() {
        assert_eq!(names(r#"a {% include "x.txt" %} "b" {{ "c" }}"#), ["x.txt"]);
        assert_eq!(
            names("{%- include ['a', 'b'] ignore missing -%}"),
            ["a", "b"]
        );
        assert_eq!(
            names("{% from 'm.txt' import f %}{%+ extends \"l\" %}"),
            ["m.txt", "l"]
        );
        assert_eq!(names("{% if x == 'a' %}{% included 'b' %}"), [""; 0]);
        assert_eq!(names("{% include 'open"), [""; 0]);
        assert_eq!(names("{% include 'ä%}' % 'b' %}"), ["ä%}", "b"]);
    }

    #[test]
    fn includes_are_transitive_and_confined_to_the_folder() {
        let root = tempfile::tempdir().expect("a temporary folder");
        let folder = root.path().join("templates");
        std::fs::create_dir_all(folder.join("sub")).expect("a folder");
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).expect("a file is written");
        };
        write("a.txt", "{% include 'sub/b.txt' %}{% include 'a.txt' %}");
        write("sub/b.txt", "b");
        std::fs::write(root.path().join("secret.txt"), "s").expect("a file is written");
        std::os::unix::fs::symlink("../secret.txt", folder.join("link.txt")).expect("a link");

        let text = "{% include 'a.txt' %}{% include ['../secret.txt', 'link.txt', 'sub', 'no'] %}";
        std::fs::write(folder.join("t.toml"), "").expect("a file is written");
        let template = SourceFile::read(&folder.join("t.toml")).expect("it was just written");
        let layout = crate::config::Layout {
            root: root.path().join("none"),
        };
        let search = SearchPath::of_template(&layout, &template);
        let includes = collect(&search, [text]).expect("all can be read");
        assert_eq!(includes.keys().collect::<Vec<_>>(), ["a.txt", "sub/b.txt"]);

        std::fs::write(folder.join("bad.txt"), b"a\xff").expect("a file is written");
        let error = collect(&search, ["{% include 'bad.txt' %}"]).expect_err("not UTF-8");
        assert!(
            error
                .to_string()
                .ends_with("bad.txt: not UTF-8 at byte 1 (0xff)"),
            "{error}"
        );
    }
}
