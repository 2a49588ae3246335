//! Random changes, and concurrent runs.

use std::fs;
use std::thread;

use proptest::prelude::*;

use super::{Project, SUITE, TEMPLATE};
use crate::flow::{CacheState, expand};

/// A change between two expansions.
#[derive(Debug, Clone)]
enum Change {
    /// Rewrites a file with the same content.
    Touch(usize),
    Delete(usize),
    Truncate(usize),
    /// Flips one bit of one byte.
    Flip(usize, usize, u8),
    /// Adds a file that no flow uses.
    Stray(usize),
    /// Replaces the cache file.
    Garbage(Vec<u8>),
    DeleteCache,
    NumFlows(usize),
    Template(u8),
    Suite(u8),
    Fixture(u8),
    /// Adds files that do not belong to the fixture.
    BesideFixture(u8),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (1..5usize).prop_map(Change::Touch),
        (1..5usize).prop_map(Change::Delete),
        (1..5usize).prop_map(Change::Truncate),
        (1..5usize, any::<usize>(), 0..8u8).prop_map(|(n, at, bit)| Change::Flip(n, at, bit)),
        (5..200_000usize).prop_map(Change::Stray),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Change::Garbage),
        Just(Change::DeleteCache),
        (1..5usize).prop_map(Change::NumFlows),
        (0..2u8).prop_map(Change::Template),
        (0..2u8).prop_map(Change::Suite),
        (0..2u8).prop_map(Change::Fixture),
        any::<u8>().prop_map(Change::BesideFixture),
    ]
}

/// The inputs of an expansion.
#[derive(Debug, Clone, PartialEq)]
struct Input {
    num_flows: usize,
    template: u8,
    suite: u8,
    fixture: u8,
}

impl Input {
    fn write(&self, project: &Project) {
        project.write(
            "templates/t.toml",
            format!("{TEMPLATE}# {}\n", self.template),
        );
        project.write(
            "templates/t.suite.jsonl",
            SUITE.replace("fee", &format!("fee{}", self.suite)),
        );
        project.write("fixtures/code/b.py", format!("{}\n", self.fixture));
    }
}

fn expanded(number: usize) -> String {
    format!("flows/_expanded_{number:05}.json")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The cache is used if and only if no relevant input has changed. Either way, the folder then matches a
    /// fresh expansion.
    #[test]
    fn the_cache_is_used_if_and_only_if_it_is_valid(
        rounds in proptest::collection::vec(proptest::collection::vec(change(), 0..3), 1..6),
    ) {
        let project = Project::new();
        let mut input = Input { num_flows: 3, template: 0, suite: 0, fixture: 0 };
        input.write(&project);
        project.expand(input.num_flows);
        for changes in rounds {
            let before = input.clone();
            let flows = project.flows();
            let cache = fs::read(project.path("flows/.expanded_cache.json")).expect("it is there");
            for change in &changes {
                apply(change, &project, &mut input);
            }
            input.write(&project);
            let mut now = project.flows();
            now.retain(|name, _| flows.contains_key(name));
            let same = input == before
                && now == flows
                && fs::read(project.path("flows/.expanded_cache.json")).ok() == Some(cache);

            let state = project.expand(input.num_flows).state;
            prop_assert_eq!(state == CacheState::Hit, same, "{:?}: {:?}", changes, state);

            let fresh = Project::new();
            input.write(&fresh);
            let expansion = fresh.expand(input.num_flows);
            prop_assert_eq!(project.flows(), fresh.flows());
            let cached = project.expand(input.num_flows);
            prop_assert_eq!(&cached.state, &CacheState::Hit);
            prop_assert_eq!(cached.flows, expansion.flows);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// The content of rows and fixtures is data, and is inserted verbatim.
    #[test]
    fn rows_and_fixtures_are_data(
        task in r#"([${}%#'"\\ -]|.|\n){1,30}"#,
        content in r#"([${}%#'"\\ -]|.|\n){0,60}"#,
    ) {
        let row = serde_json::json!({ "task": task });
        let project = Project::new()
            .with("templates/t.suite.jsonl", row.to_string())
            .with("fixtures/code/b.py", &content);
        let flow = project.expand(1).flows.remove(0);
        let head = "You review code.\n===== FILE: a/x.md =====\n# {{ title }}\n===== FILE: b.py =====\n";
        // A byte order mark is no part of a file's text.
        let content = content.strip_prefix('\u{feff}').unwrap_or(&content);
        let end = if content.is_empty() || content.ends_with('\n') { "" } else { "\n" };
        let system = format!("{head}{content}{end}");
        prop_assert_eq!(flow.system.as_deref(), Some(system.as_str()));
        let text = format!("{task} Plan it.");
        prop_assert_eq!(super::generate(&flow, 0).prompt[0].as_text(), Some(text.as_str()));
    }

    /// No template makes the program panic.
    #[test]
    fn garbage_templates_never_panic(
        line in 0..20usize,
        garbage in r#"(\[\[step\]\]|needs|prompt|= |"|'{3}|\$\{|\{\{|\{%|%\}|\}|row|steps|\.|\PC){0,12}"#,
    ) {
        let mut lines: Vec<&str> = TEMPLATE.lines().collect();
        let line = line % lines.len();
        lines[line] = &garbage;
        let text = lines.join("\n");
        let project = Project::new().with("templates/t.toml", text);
        // Both `Ok` and `Err` are fine.
        drop(expand(&project.request(2)));
    }
}

fn apply(change: &Change, project: &Project, input: &mut Input) {
    match change {
        Change::Touch(number) | Change::Truncate(number) | Change::Flip(number, ..) => {
            let Ok(mut bytes) = fs::read(project.path(&expanded(*number))) else {
                return;
            };
            match change {
                Change::Truncate(_) => bytes.truncate(bytes.len() / 2),
                Change::Flip(_, at, bit) if !bytes.is_empty() => {
                    let at = at % bytes.len();
                    bytes[at] ^= 1 << bit;
                }
                _ => {}
            }
            project.write(&expanded(*number), bytes);
        }
        // The file may not exist.
        Change::Delete(number) => drop(fs::remove_file(project.path(&expanded(*number)))),
        Change::Stray(number) => project.write(&expanded(*number), "{}"),
        Change::Garbage(bytes) => project.write("flows/.expanded_cache.json", bytes),
        Change::DeleteCache => drop(fs::remove_file(project.path("flows/.expanded_cache.json"))),
        Change::NumFlows(number) => input.num_flows = *number,
        Change::Template(number) => input.template = *number,
        Change::Suite(number) => input.suite = *number,
        Change::Fixture(number) => input.fixture = *number,
        Change::BesideFixture(number) => {
            project.write("fixtures/code/.hidden", [*number]);
            project.write("fixtures/code/__pycache__/b.pyc", [*number]);
            project.write("fixtures/other.md", [*number]);
            project.write("flows/notes.md", "mine");
            fs::remove_file(project.path("flows/notes.md")).expect("it was just written");
        }
    }
}

/// Concurrent runs with different requests each get the flows of one expansion, and the disk holds those of
/// one of them.
#[test]
fn concurrent_runs_do_not_mix() {
    let project = Project::new();
    thread::scope(|scope| {
        for run in 0..4 {
            let project = &project;
            scope.spawn(move || {
                for round in 0..25 {
                    let num_flows = 1 + (run + round) % 4;
                    let expansion = expand(&project.request(num_flows)).expect("it expands");
                    let numbers: Vec<usize> =
                        expansion.flows.iter().map(|flow| flow.flow).collect();
                    assert_eq!(numbers, (1..=num_flows).collect::<Vec<_>>());
                }
            });
        }
    });
    let left = project.flows().len();
    assert!(project.state(left).starts_with("Using cached"));
}
