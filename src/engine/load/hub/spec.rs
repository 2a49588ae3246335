//! Parses `MODEL`: a path, `owner/name` or `owner/name:file.gguf`, or nothing.

use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Spec {
    /// The default model.
    Default,
    /// An existing path.
    Path(PathBuf),
    /// A hub repository.
    Repository {
        /// `owner/name`.
        name: String,
        /// The GGUF file in it, if given.
        file: Option<String>,
    },
}

impl Spec {
    /// Parses the setting. An existing path takes precedence over a repository name.
    ///
    /// # Errors
    /// Exit code 3 for a path that does not exist, 2 for text that is neither a path nor a
    /// repository.
    pub(super) fn parse(model: Option<&str>) -> Result<Self> {
        let Some(model) = model else {
            return Ok(Self::Default);
        };
        if model.is_empty() {
            return Err(not_a_model(model));
        }
        let path = Path::new(model);
        if path.exists() {
            return Ok(Self::Path(path.to_owned()));
        }
        if looks_like_a_path(model) {
            let error = Error::preflight(format!("no such file: {model} (MODEL)"));
            return Err(if model.starts_with('~') {
                error.hint("`~` is not expanded here: write the path out, or use $HOME")
            } else {
                error.hint(
                    "MODEL is a path to a .gguf file or a folder, a repository owner/name[:file.gguf], or unset for the default model",
                )
            });
        }
        let (name, file) = match model.split_once(':') {
            Some((name, file)) => (name, Some(file)),
            None => (model, None),
        };
        let is_repository = name
            .split_once('/')
            .is_some_and(|(owner, name)| is_name(owner) && is_name(name));
        if !is_repository {
            return Err(not_a_model(model));
        }
        if let Some(file) = file {
            check_file(model, file)?;
        }
        Ok(Self::Repository {
            name: name.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

fn looks_like_a_path(model: &str) -> bool {
    let is_file = model.ends_with(".gguf") && !model.contains(':');
    let name = model.split(':').next().unwrap_or(model);
    model.starts_with(['.', '/', '~']) || is_file || name.matches('/').count() > 1
}

fn is_name(name: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    !name.is_empty() && !name.starts_with(['-', '.']) && name.chars().all(is_allowed)
}

fn check_file(model: &str, file: &str) -> Result<()> {
    let is_inside = Path::new(file)
        .components()
        .all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || !is_inside || !file.ends_with(".gguf") {
        return Err(Error::usage(format!(
            "`{file}` in MODEL={model} is not the name of a .gguf file"
        ))
        .hint("MODEL=owner/name:file.gguf names one file of a repository"));
    }
    Ok(())
}

fn not_a_model(model: &str) -> Error {
    Error::usage(format!("`{model}` is not a model (MODEL)")).hint(
        "set MODEL to a .gguf file, a folder, or a repository owner/name[:file.gguf]; unset it for the default model",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;

    fn repository(name: &str, file: Option<&str>) -> Spec {
        Spec::Repository {
            name: name.to_owned(),
            file: file.map(str::to_owned),
        }
    }

    #[test]
    fn repositories_with_and_without_a_file() {
        let parse = |model| Spec::parse(Some(model)).unwrap();
        assert_eq!(Spec::parse(None).unwrap(), Spec::Default);
        assert_eq!(
            parse("owner/na-me_1.5B"),
            repository("owner/na-me_1.5B", None)
        );
        assert_eq!(parse("o/n:a.gguf"), repository("o/n", Some("a.gguf")));
        assert_eq!(
            parse("o/n:sub/a.gguf"),
            repository("o/n", Some("sub/a.gguf"))
        );
    }

    #[test]
    fn an_existing_path_takes_precedence() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b.gguf");
        std::fs::write(&path, "").unwrap();
        for path in [path, folder.path().to_owned()] {
            let spec = Spec::parse(Some(path.to_str().unwrap())).unwrap();
            assert_eq!(spec, Spec::Path(path));
        }
    }

    #[test]
    fn a_missing_path_is_reported_as_no_such_file() {
        for model in [
            "/no/x.gguf",
            "./no-such-model",
            "../no-such-model",
            "~/x.gguf",
            "x.gguf",
            "a/b/c",
            "d/x.gguf",
        ] {
            let error = Spec::parse(Some(model)).unwrap_err();
            assert_eq!(error.exit(), Exit::Preflight, "{model}");
            assert!(
                error.report().contains("no such file"),
                "{}",
                error.report()
            );
            assert!(error.report().contains(model), "{}", error.report());
        }
        let error = Spec::parse(Some("~/x.gguf")).unwrap_err();
        assert!(error.report().contains("$HOME"), "{}", error.report());
    }

    #[test]
    fn text_that_is_neither_path_nor_repository_is_a_usage_error() {
        for model in [
            "",
            "name",
            "o/",
            "/",
            "o/n m",
            "-o/n",
            "o/n:",
            "o/n:x.bin",
            "o/n:../x.gguf",
        ] {
            let error = Spec::parse(Some(model)).err();
            // `/` exists.
            let Some(error) = error else {
                assert_eq!(model, "/");
                continue;
            };
            assert_eq!(error.exit(), Exit::Usage, "{model:?}: {}", error.report());
            assert!(error.hint_text().is_some(), "{model:?}");
        }
    }
}
