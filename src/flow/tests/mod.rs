//! Tests of the whole expansion, on projects in temporary folders.

mod cache;
mod expansion;
mod fixtures;
mod property;
mod templates;
mod workflows;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{ExpandRequest, Expansion, Flow, Generate, OnWait, check, expand};
use crate::config::Layout;
use crate::error::Result;

/// Fails if the lock is held by another run.
const NO_WAIT: OnWait = &|_| Ok(());

fn generate(flow: &Flow, step: usize) -> &Generate {
    flow.steps[step].generate().expect("it generates")
}

/// A project in a temporary folder: templates, fixtures and flows.
pub(super) struct Project {
    folder: tempfile::TempDir,
    layout: Layout,
}

impl Project {
    pub(super) fn empty() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let root = folder.path().to_owned();
        Self {
            folder,
            layout: Layout { root },
        }
    }

    /// A project with the template `t`, its suite of three rows, and the fixture `code`.
    pub(super) fn new() -> Self {
        Self::empty()
            .with("templates/t.toml", TEMPLATE)
            .with("templates/t.suite.jsonl", SUITE)
            .with("fixtures/code/b.py", "print('${HOME}')\n")
            .with("fixtures/code/a/x.md", "# {{ title }}")
    }

    /// Writes a file, replacing any older one of that name.
    pub(super) fn with(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        self.write(path, content);
        self
    }

    pub(super) fn write(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().expect("a file has a folder")).expect("a folder");
        fs::write(path, content).expect("a file is written");
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    pub(super) fn request(&self, num_flows: usize) -> ExpandRequest<'_> {
        ExpandRequest {
            layout: &self.layout,
            template: "t",
            num_flows: Some(num_flows),
            params: &[],
            input: None,
            use_cache: true,
            load: true,
            on_wait: NO_WAIT,
            proceed: &|| Ok(()),
        }
    }

    pub(super) fn expand(&self, num_flows: usize) -> Expansion {
        expand(&self.request(num_flows)).unwrap_or_else(|error| panic!("{}", error.report()))
    }

    /// The cache line of a check and of an expansion after it, which must agree.
    pub(super) fn state(&self, num_flows: usize) -> String {
        let checked = check(&self.request(num_flows)).expect("the template is right");
        let expanded = self.expand(num_flows);
        assert_eq!(checked.state, expanded.state);
        expanded.progress_line()
    }

    /// The report of the error, without the temporary folder's name.
    pub(super) fn failure(&self) -> String {
        self.report(expand(&self.request(3)))
    }

    pub(super) fn report(&self, result: Result<Expansion>) -> String {
        let error = match result {
            Ok(_) => panic!("the project is wrong, and expanded all the same"),
            Err(error) => error,
        };
        let code = error.exit() as u8;
        let root = format!("{}/", self.folder.path().display());
        format!("exit code {code}\n{}", error.report().replace(&root, ""))
    }

    /// The files in `flows/`, except the lock and the cache.
    pub(super) fn flows(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = files_in(&self.path("flows"));
        files.remove(".lock");
        files.remove(".expanded_cache.json");
        files
    }
}

pub(super) fn files_in(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .expect("the folder can be listed")
        .map(|entry| {
            let entry = entry.expect("the folder can be listed");
            let name = entry.file_name().into_string().expect("names are UTF-8");
            (name, fs::read(entry.path()).expect("the file can be read"))
        })
        .collect()
}

pub(super) const TEMPLATE: &str = r#"schema = 1
name = "t"
description = "Plan and do"
suite = "t.suite.jsonl"
fixture = { dir = "code" }
system = """You review code.
{{ fixture.text }}"""

[[step]]
id = "plan"
prompt = "{{ row.task }} Plan it."
max_tokens = 16

[[step]]
id = "do"
needs = ["plan"]
context = "append"
prompt = "Flow {{ flow.number }}: carry out ${steps.plan.text}."
temperature = 0.5
"#;

pub(super) const SUITE: &str = r#"{"id": "late-fees", "task": "Find the fee."}
{"id": "search", "task": "Find {{ row.x }}."}
{"task": "Find ${steps.plan.text}."}
"#;

/// A template with `head` before its steps, which are `steps` or a default step.
pub(super) fn template(head: &str, steps: &str) -> String {
    let steps = if steps.is_empty() {
        "[[step]]\nid = \"a\"\nprompt = \"p\"\n"
    } else {
        steps
    };
    format!("schema = 1\nname = \"t\"\n{head}\n{steps}")
}
