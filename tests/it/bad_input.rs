//! What a user can get wrong: each gives one clear error with its place and a hint, the right exit
//! code, and no panic. The snapshots are what the user reads.

use crate::common::{Printed, TEMPLATE, Workspace, run};

/// A run with these variables; the snapshot is called `name`.
#[track_caller]
fn snapshot(name: &str, workspace: &Workspace, variables: &[(&str, &str)]) -> Printed {
    let printed = run(workspace.scripted().envs(variables.iter().copied()));
    check(name, workspace, printed)
}

#[track_caller]
fn check(name: &str, workspace: &Workspace, printed: Printed) -> Printed {
    assert!(
        printed.code > 1,
        "{name}: exit {}\n{}",
        printed.code,
        printed.err
    );
    assert!(!printed.err.contains("panicked"), "{name}: {}", printed.err);
    insta::assert_snapshot!(name, printed.redacted(workspace));
    printed
}

#[test]
fn settings() {
    let workspace = Workspace::new();
    for (name, variable, value) in [
        ("mode", "MODE", "fast"),
        ("num_flows_zero", "NUM_FLOWS", "0"),
        ("num_flows_negative", "NUM_FLOWS", "-1"),
        ("num_flows_word", "NUM_FLOWS", "abc"),
        ("num_flows_float", "NUM_FLOWS", "1e9"),
        ("num_flows_huge", "NUM_FLOWS", "1000000000"),
        ("device", "DEVICE", "tpu"),
        ("seed", "SEED", "-5"),
        ("max_tokens", "MAX_TOKENS", "0"),
        ("ignore_eos", "IGNORE_EOS", "perhaps"),
        ("gpu_power", "GPU_POWER", "-300"),
        ("empty", "NUM_FLOWS", ""),
    ] {
        let printed = snapshot(&format!("setting_{name}"), &workspace, &[(variable, value)]);
        assert_eq!(printed.code, 2, "{name}");
        assert!(printed.err.contains(variable), "{name} is named");
        assert!(printed.err.contains("hint: "), "{name}");
    }
}

#[test]
fn a_negative_number_as_a_flag() {
    let workspace = Workspace::new();
    let printed = run(workspace.scripted().args(["--num-flows", "-1"]));
    assert_eq!(printed.code, 2);
    assert!(
        printed.err.contains("'-1' for '--num-flows <NUM_FLOWS>'"),
        "{}",
        printed.err
    );
}

#[test]
fn templates() {
    let broken = [
        ("missing_template", None, "no-such"),
        (
            "bad_toml",
            Some(TEMPLATE.replace("name = \"chain\"", "name = chain\"")),
            "chain",
        ),
        (
            "unknown_key",
            Some(TEMPLATE.replace("max_tokens = 12", "max_token = 12")),
            "chain",
        ),
        (
            "wrong_type",
            Some(TEMPLATE.replace("max_tokens = 12", "max_tokens = \"12\"")),
            "chain",
        ),
        (
            "unknown_step",
            Some(TEMPLATE.replace("[\"planner\"]", "[\"planer\"]")),
            "chain",
        ),
        (
            "cycle",
            Some(TEMPLATE.replace(
                "id = \"planner\"\n",
                "id = \"planner\"\nneeds = [\"verifier\"]\n",
            )),
            "chain",
        ),
        (
            "undefined_variable",
            Some(TEMPLATE.replace("row.task", "row.tusk")),
            "chain",
        ),
        (
            "unknown_reference",
            Some(TEMPLATE.replace("steps.planner", "steps.planner2")),
            "chain",
        ),
        (
            "unclosed",
            Some(TEMPLATE.replace("planner.text}", "planner.text")),
            "chain",
        ),
        (
            "other_schema",
            Some(TEMPLATE.replace("schema = 1", "schema = 7")),
            "chain",
        ),
    ];
    for (name, text, template) in broken {
        let workspace = Workspace::new();
        if let Some(text) = text {
            assert_ne!(text, TEMPLATE, "{name} changes nothing");
            workspace.write("templates/chain.toml", text);
        }
        let printed = snapshot(
            &format!("template_{name}"),
            &workspace,
            &[("TEMPLATE", template)],
        );
        assert_eq!(printed.code, 2, "{name}");
        assert!(printed.err.contains("hint: "), "{name}: {}", printed.err);
        assert!(!workspace.file("results").exists(), "{name}: nothing ran");
    }
}

#[test]
fn fixtures_and_suites() {
    let missing = Workspace::new();
    std::fs::remove_dir_all(missing.file("fixtures/code")).expect("is there");
    assert_eq!(snapshot("fixture_missing", &missing, &[]).code, 2);

    let binary = Workspace::new();
    binary.write("fixtures/code/b.py", b"def b():\n    return '\xff\xfe'\n");
    assert_eq!(snapshot("fixture_not_utf8", &binary, &[]).code, 2);

    let unreadable = Workspace::new();
    // Dangling, since permissions do not keep root from reading.
    std::os::unix::fs::symlink("nowhere", unreadable.file("fixtures/code/c.py")).expect("writable");
    assert_eq!(snapshot("fixture_unreadable", &unreadable, &[]).code, 2);

    let suite = Workspace::new();
    suite.write(
        "templates/chain.suite.jsonl",
        "{\"id\": \"a\", \"task\": \"x\"}\n{\"id\": \"b\", \"task\"\n",
    );
    assert_eq!(snapshot("suite_broken_line", &suite, &[]).code, 2);

    let gone = Workspace::new();
    std::fs::remove_file(gone.file("templates/chain.suite.jsonl")).expect("is there");
    assert_eq!(snapshot("suite_missing", &gone, &[]).code, 2);
}

#[test]
fn scripts() {
    let gone = Workspace::new();
    std::fs::remove_file(gone.file("templates/chain.script.jsonl")).expect("is there");
    assert_eq!(snapshot("script_missing", &gone, &[]).code, 2);

    let broken = Workspace::new();
    broken.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"x\"}\n{oops\n",
    );
    assert_eq!(snapshot("script_broken_line", &broken, &[]).code, 2);

    let idle = Workspace::new();
    let printed = snapshot(
        "script_without_mode",
        &idle,
        &[
            ("MODE", "standalone"),
            ("SCRIPT", "templates/chain.script.jsonl"),
        ],
    );
    assert_eq!(printed.code, 2);
}

#[test]
fn models() {
    let workspace = Workspace::new();
    workspace.write("empty.gguf", "");
    workspace.write(
        "text.gguf",
        "this is no model, and long enough to be looked at\n".repeat(9),
    );
    std::fs::create_dir(workspace.file("folder")).expect("writable");
    for (name, model) in [
        ("missing", "./no-such.gguf"),
        ("empty", "./empty.gguf"),
        ("not_gguf", "./text.gguf"),
        ("folder_without_files", "./folder"),
        ("malformed_name", "a/b/c:d"),
        ("offline", "owner/name"),
    ] {
        let printed = snapshot(
            &format!("model_{name}"),
            &workspace,
            &[("MODE", "standalone"), ("MODEL", model), ("DEVICE", "cpu")],
        );
        assert!([2, 3].contains(&printed.code), "{name}: {}", printed.code);
    }
    let printed = snapshot(
        "model_default_offline",
        &workspace,
        &[("MODE", "standalone"), ("DEVICE", "cpu")],
    );
    assert_eq!(printed.code, 3);
}

#[test]
fn a_gpu_that_is_not_there() {
    if std::path::Path::new("/proc/driver/nvidia/version").exists() {
        eprintln!("skipped: an NVIDIA driver is here");
        return;
    }
    let workspace = Workspace::new();
    let printed = snapshot(
        "device_cuda",
        &workspace,
        &[("MODE", "standalone"), ("DEVICE", "cuda")],
    );
    assert_eq!(printed.code, 3);
}

#[test]
fn places_that_cannot_be_written() {
    let results = Workspace::new();
    results.write("results", "a file where the folder should be");
    assert_eq!(snapshot("results_not_a_folder", &results, &[]).code, 110);

    let flows = Workspace::new();
    flows.write("flows", "a file where the folder should be");
    assert_eq!(snapshot("flows_not_a_folder", &flows, &[]).code, 110);
}

#[test]
fn a_full_disk() {
    // A device that is always full stands for one, since a test cannot fill the disk.
    let workspace = Workspace::new();
    let full = std::fs::OpenOptions::new()
        .write(true)
        .open("/dev/full")
        .expect("Linux has it");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_flowbench"))
        .current_dir(workspace.path())
        .env_clear()
        .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
        .arg("run")
        .stdout(full)
        .output()
        .expect("starts");
    assert_eq!(output.status.code(), Some(110));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(err.contains("hint: "), "{err}");
}
