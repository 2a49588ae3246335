//! Cache hits, every kind of cache miss, and the content of `flows/`.

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use super::{NO_WAIT, Project, SUITE, TEMPLATE};
use crate::config::Layout;
use crate::error::Error;
use crate::flow::cache::{FILE, Writer};
use crate::flow::{CacheState, ExpandRequest, MissReason, check, expand};

const CACHE: &str = "flows/.expanded_cache.json";

/// Expands, applies a change, and expects this line. After that everything is cached again, and `flows/` is
/// identical to that of a fresh project.
fn after(change: impl Fn(&Project), expected: &str) {
    let project = Project::new();
    project.expand(3);
    change(&project);
    assert_eq!(project.state(3), expected);
    assert!(project.state(3).starts_with("Using cached expanded flows"));
    let again = project.flows();
    fs::remove_dir_all(project.path("flows")).expect("flows/ is removed");
    project.expand(3);
    assert_eq!(project.flows(), again);
}

fn miss(reason: &str) -> String {
    format!("Regenerating expanded flows (cache miss: {reason})")
}

/// Replaces text in the cache file.
fn edit_cache(project: &Project, from: &str, to: &str) {
    let cache = fs::read_to_string(project.path(CACHE)).expect("the cache is text");
    assert!(cache.contains(from), "{from} in {cache}");
    project.write(CACHE, cache.replacen(from, to, 1));
}

#[test]
fn nothing_changed() {
    let project = Project::new();
    assert_eq!(project.state(3), miss("no cache"));
    let hit = project.state(3);
    let expansion = project.expand(3);
    let [fixture, template] = [&expansion.fixture_hash[..8], &expansion.template_hash[..8]];
    assert_eq!(
        hit,
        format!(
            "Using cached expanded flows (fixture_hash={fixture}..., template_hash={template}...)"
        )
    );
}

#[test]
fn an_expansion_that_is_stopped_leaves_no_valid_cache() {
    let project = Project::new();
    project.expand(3);
    let written = Cell::new(0);
    let stop = || match written.replace(written.get() + 1) {
        2 => Err(Error::usage("enough")),
        _ => Ok(()),
    };
    let mut request = project.request(4);
    request.proceed = &stop;
    let stopped = expand(&request).expect_err("the third flow is not begun");
    assert_eq!((stopped.to_string().as_str(), written.get()), ("enough", 3));
    assert_eq!(project.state(4), miss("no cache"));
    assert!(project.state(4).starts_with("Using cached expanded flows"));
}

#[test]
fn no_cache() {
    after(
        |project| fs::remove_file(project.path(CACHE)).expect("the cache is removed"),
        &miss("no cache"),
    );
}

#[test]
fn fixture_changed() {
    let reason = miss("fixture changed");
    after(
        |project| project.write("fixtures/code/b.py", "print()"),
        &reason,
    );
    after(|project| project.write("fixtures/code/new.py", ""), &reason);
    after(
        |project| fs::remove_file(project.path("fixtures/code/b.py")).expect("it is removed"),
        &reason,
    );
    after(
        |project| {
            let folder = project.path("fixtures/code");
            fs::rename(folder.join("b.py"), folder.join("c.py")).expect("it is renamed");
        },
        &reason,
    );
}

#[test]
fn template_changed() {
    let reason = miss("template changed");
    let template = |project: &Project| project.write("templates/t.toml", format!("{TEMPLATE}\n"));
    after(template, &reason);
    let suite = |project: &Project| project.write("templates/t.suite.jsonl", SUITE.to_uppercase());
    after(
        |project| {
            suite(project);
            project.write("templates/t.suite.jsonl", SUITE.replace("fee", "fees"));
        },
        &reason,
    );
    // With a different fixture as well.
    after(
        |project| {
            template(project);
            project.write("fixtures/code/new.py", "");
        },
        &reason,
    );
}

#[test]
fn an_included_file_belongs_to_the_template() {
    let text = TEMPLATE.replace("Plan it.", "{% include 'rules.txt' %}");
    let project = Project::new()
        .with("templates/t.toml", text)
        .with("templates/rules.txt", "{% include 'more.txt' %}")
        .with("templates/more.txt", "Be brief.")
        .with("templates/unused.txt", "");
    project.expand(3);
    project.write("templates/unused.txt", "changed");
    assert!(project.state(3).starts_with("Using cached"));
    project.write("templates/more.txt", "Be long.");
    assert_eq!(project.state(3), miss("template changed"));
}

#[test]
fn another_template_with_the_same_text_is_a_miss() {
    let project = Project::new().with("templates/u.toml", TEMPLATE);
    project.expand(3);
    let request = ExpandRequest {
        template: "u",
        ..project.request(3)
    };
    let expansion = expand(&request).expect("it expands");
    assert_eq!(
        expansion.state,
        CacheState::Miss(MissReason::TemplateChanged)
    );
}

#[test]
fn num_flows_changed() {
    let project = Project::new();
    project.expand(3);
    assert_eq!(project.state(2), miss("num_flows changed"));
    assert_eq!(project.flows().len(), 2, "the third is no longer asked for");
    let state = project.expand(4).state;
    let reason = MissReason::NumFlowsChanged {
        cached: 2,
        asked: 4,
    };
    assert_eq!(reason.detail().as_deref(), Some("from 2 to 4"));
    assert_eq!(state, CacheState::Miss(reason));
}

#[test]
fn file_missing() {
    after(
        |project| {
            fs::remove_file(project.path("flows/_expanded_00002.json")).expect("it is removed")
        },
        &miss("file missing"),
    );
}

#[test]
fn file_altered() {
    let reason = miss("file altered");
    let file = "flows/_expanded_00003.json";
    after(|project| project.write(file, ""), &reason);
    after(
        |project| {
            let mut bytes = fs::read(project.path(file)).expect("it is there");
            bytes[40] ^= 1;
            project.write(file, bytes);
        },
        &reason,
    );
    after(
        |project| {
            let mut bytes = fs::read(project.path(file)).expect("it is there");
            bytes.push(b'\n');
            project.write(file, bytes);
        },
        &reason,
    );
    after(
        |project| {
            let other = fs::read(project.path("flows/_expanded_00001.json")).expect("it is there");
            project.write(file, other);
        },
        &reason,
    );
}

#[test]
fn file_times_do_not_count() {
    let project = Project::new();
    project.expand(3);
    for file in [
        "flows/_expanded_00001.json",
        "fixtures/code/b.py",
        "templates/t.toml",
    ] {
        let content = fs::read(project.path(file)).expect("it is there");
        project.write(file, content);
    }
    assert!(project.state(3).starts_with("Using cached"));
}

#[test]
fn cache_unreadable() {
    let reason = miss("cache unreadable");
    for garbage in [
        &b""[..],
        b"{",
        b"\xff\x00",
        b"[]",
        b"null",
        b"{\"schema\": 1}",
        b"{\"files\": []}",
    ] {
        after(|project| project.write(CACHE, garbage), &reason);
    }
    after(
        |project| {
            let bytes = fs::read(project.path(CACHE)).expect("it is there");
            project.write(CACHE, &bytes[..bytes.len() / 2]);
        },
        &reason,
    );
    // File lists that do not match these flows, or point elsewhere.
    let first = "_expanded_00001.json";
    after(
        |project| edit_cache(project, first, "../templates/t.toml"),
        &reason,
    );
    after(
        |project| edit_cache(project, first, "_expanded_00002.json"),
        &reason,
    );
    after(
        |project| edit_cache(project, "\"num_flows\"", "\"flows\""),
        &reason,
    );
}

#[test]
fn other_versions() {
    let expander = "\"expander_version\": 3";
    after(
        |project| edit_cache(project, expander, "\"expander_version\": 0"),
        &miss("other expander version"),
    );
    after(
        |project| project.write(CACHE, "{\"schema\": 2, \"flows\": {}}"),
        &miss("other cache schema"),
    );
}

#[test]
fn the_cache_can_be_disabled() {
    let project = Project::new();
    project.expand(3);
    let request = ExpandRequest {
        use_cache: false,
        ..project.request(3)
    };
    let expansion = expand(&request).expect("it expands");
    assert_eq!(expansion.progress_line(), miss("cache disabled"));
    assert_eq!(expansion.flows.len(), 3);
    assert!(project.state(3).starts_with("Using cached"));
}

#[test]
fn a_flow_with_a_forged_digest_is_rejected() {
    let project = Project::new();
    project.expand(1);
    let file = "flows/_expanded_00001.json";
    let before = fs::read(project.path(file)).expect("it is there");
    let forged = String::from_utf8_lossy(&before).replace("\"flow\": 1,", "\"flow\": 2,");
    project.write(file, &forged);
    let [old, new] = [&before[..], forged.as_bytes()].map(crate::hash::sha256);
    edit_cache(&project, &old, &new);
    assert_eq!(project.expand(1).progress_line(), miss("file altered"));
}

#[test]
fn the_content_of_the_cache_file() {
    let project = Project::new();
    let expansion = project.expand(1);
    let bytes = fs::read(project.path(CACHE)).expect("it is there");
    let cache: serde_json::Value = serde_json::from_slice(&bytes).expect("it is JSON");
    let flow = fs::read(project.path("flows/_expanded_00001.json")).expect("it is there");
    let created = cache["created_at"].as_str().expect("it is text");
    let created: jiff::Timestamp = created.parse().expect("it is RFC 3339");
    assert!(jiff::Timestamp::now().as_second() - created.as_second() < 60);
    let expected = serde_json::json!({
        "schema": 1,
        "expander_version": 3,
        "fixture_hash": expansion.fixture_hash,
        "template_hash": expansion.template_hash,
        "num_flows": 1,
        "created_at": cache["created_at"],
        "files": [{
            "name": "_expanded_00001.json",
            "size": flow.len(),
            "sha256": crate::hash::sha256(&flow),
        }],
    });
    assert_eq!(cache, expected);
}

#[test]
fn only_surplus_flows_are_removed() {
    let project = Project::new();
    let strays = [
        "_expanded_00009.json",
        "_expanded_1.json",
        "_expanded_x.json",
        ".expanded-1.tmp",
    ];
    let kept = [
        ".gitkeep",
        "notes.md",
        "_expanded_00009.json.bak",
        "expanded_00001.json",
    ];
    // Also on a cache hit.
    for _ in 0..2 {
        for name in strays.iter().chain(&kept) {
            project.write(&format!("flows/{name}"), "x");
        }
        fs::create_dir_all(project.path("flows/_expanded_00007.json")).expect("a folder");
        project.expand(2);
        fs::remove_dir(project.path("flows/_expanded_00007.json")).expect("it was left alone");
        let names: Vec<String> = project.flows().into_keys().collect();
        let mut expected = [&kept[..], &["_expanded_00001.json", "_expanded_00002.json"]].concat();
        expected.sort_unstable();
        assert_eq!(names, expected);
    }
}

/// A template that fails at its second row leaves flows behind, but no valid cache.
#[test]
fn an_expansion_that_fails_leaves_no_cache() {
    let project = Project::new();
    project.expand(3);
    project.write(
        "templates/t.suite.jsonl",
        "{\"task\": \"a\"}\n{\"tsk\": \"b\"}\n",
    );
    assert!(project.failure().contains("`row.task` is undefined"));
    assert!(!project.path(CACHE).exists());
    project.write("templates/t.suite.jsonl", SUITE);
    assert_eq!(project.state(3), miss("no cache"));
}

#[test]
fn a_folder_that_cannot_be_created_is_an_output_error() {
    let project = Project::new().with("flows", "a file is in the way");
    insta::assert_snapshot!(project.failure(), @"
    exit code 110
    error: failed to create the folder flows
      caused by: File exists (os error 17)
    hint: make its parent writable, remove what is in the way, or let --root name another folder
    ");
    let expansion = check(&project.request(3)).expect("a check writes nothing");
    assert_eq!(expansion.progress_line(), miss("cache unreadable"));
}

#[test]
fn a_full_disk_is_an_output_error_and_leaves_nothing_half_written() {
    let project = Project::new();
    project.expand(1);
    let folder = project.path("flows");
    let writer = Writer::begin(&folder).expect("the folder can be written");
    let temporary = folder.join(format!(".expanded-{}.tmp", std::process::id()));
    // Writing to this link fails like a full disk.
    symlink("/dev/full", &temporary).expect("a link");
    let error = writer.flow(1, b"{}").expect_err("the disk is full");
    assert_eq!(error.exit() as u8, 110);
    assert_eq!(error.hint_text(), Some("free some space on that disk"));
    assert!(!temporary.is_symlink(), "the temporary file is removed");
    assert!(!folder.join(FILE).exists(), "nothing vouches for the flows");
}

/// Runs the test's other half as an unprivileged user, since root may always write.
#[test]
fn a_read_only_folder() {
    let project = Project::new();
    project.expand(3);
    let open = |path: &str, mode| {
        let permissions = fs::Permissions::from_mode(mode);
        fs::set_permissions(project.path(path), permissions).expect("modes can be set");
    };
    open("", 0o755);
    open("flows", 0o555);
    // The lock file exists but belongs to another user, or it does not exist.
    for lock_is_there in [true, false] {
        if !lock_is_there {
            open("flows", 0o755);
            fs::remove_file(project.path("flows/.lock")).expect("the lock file is removed");
            open("flows", 0o555);
        }
        let binary = std::env::current_exe().expect("the test has a path");
        let mut command = Command::new(&binary);
        if fs::write(project.path("flows/probe"), "").is_ok() {
            fs::remove_file(project.path("flows/probe")).expect("the probe is removed");
            // As root: the unprivileged user can only execute a binary in an accessible folder.
            let copy = project.path("test-binary");
            if !copy.exists() {
                fs::copy(&binary, &copy).expect("the test can be copied");
                open("test-binary", 0o755);
            }
            command = Command::new(copy);
            command.uid(65534).gid(65534);
        }
        let output = command
            .args([
                "--exact",
                "flow::tests::cache::as_an_unprivileged_user",
                "--ignored",
            ])
            .env("FLOWBENCH_TEST_ROOT", project.path(""))
            .current_dir("/")
            .output()
            .expect("the test can be run");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}"
        );
    }
    open("flows", 0o755);
}

#[test]
#[ignore = "run by a_read_only_folder"]
fn as_an_unprivileged_user() {
    let root = std::env::var_os("FLOWBENCH_TEST_ROOT").expect("the other half sets it");
    let layout = Layout { root: root.into() };
    let request = |num_flows: usize| ExpandRequest {
        layout: &layout,
        template: "t",
        num_flows: Some(num_flows),
        params: &[],
        input: None,
        use_cache: true,
        load: true,
        on_wait: NO_WAIT,
        proceed: &|| Ok(()),
    };
    let hit = expand(&request(3)).expect("a valid cache is enough");
    assert_eq!((hit.state, hit.flows.len()), (CacheState::Hit, 3));
    let error = expand(&request(2)).expect_err("these would have to be written");
    assert_eq!(error.exit() as u8, 110);
    let report = error.report();
    assert!(
        report.contains("failed to write ") && report.contains("/flows/"),
        "{report}"
    );
    assert!(
        report.contains("hint: the flows must be expanded again: make"),
        "{report}"
    );
    let hit = expand(&request(3)).expect("the cache is still valid");
    assert_eq!(hit.state, CacheState::Hit);
}
