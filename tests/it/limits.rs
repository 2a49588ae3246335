//! What a run says of sequences that its settings or the machine cannot hold, on the real default model
//! where its file is there. Nothing is computed: it is known before.

use crate::common::{Workspace, model, run};
use assert_cmd::Command;

fn standalone(workspace: &Workspace, model: &std::path::Path) -> Command {
    let mut command = workspace.flowbench(&["run"]);
    command
        .env("TEMPLATE", "chain")
        .env("NUM_FLOWS", "1")
        .env("DEVICE", "cpu")
        .env("MODEL", model);
    command
}

/// Whether the run left no folder behind.
fn nothing_is_kept(workspace: &Workspace) -> bool {
    std::fs::read_dir(workspace.file("results"))
        .map_or(true, |mut entries| entries.next().is_none())
}

#[test]
fn a_context_above_the_models_names_the_models() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let printed = run(standalone(&workspace, &model).env("CONTEXT", "9000"));
    assert_eq!((printed.code, printed.count("[TARGET]")), (2, 0));
    for part in [
        "a context of 9000 tokens is more than the model's, 8192 tokens",
        "hint: set CONTEXT to at most 8192",
    ] {
        assert!(printed.err.contains(part), "{}", printed.err);
    }
    assert!(nothing_is_kept(&workspace));
}

#[test]
fn prompts_that_no_setting_given_holds_are_known_before_the_flows_run() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    for (setting, value, parts) in [
        (
            "KV_CACHE_MB",
            "1",
            [
                "flow 1, step",
                "and KV_CACHE_MB gives 1.0 MiB, which holds 32 tokens; the weights take",
                "hint: set KV_CACHE_MB=",
            ],
        ),
        (
            "CONTEXT",
            "20",
            [
                "flow 1, step",
                "leaves no room in the context of 20 tokens (CONTEXT)",
                "hint: set a larger CONTEXT: the model has 8192 tokens",
            ],
        ),
    ] {
        let printed = run(standalone(&workspace, &model).env(setting, value));
        assert_eq!((printed.code, printed.count("[TARGET]")), (3, 0));
        for part in parts {
            assert!(printed.err.contains(part), "{}", printed.err);
        }
        assert!(nothing_is_kept(&workspace));
    }
}

#[test]
fn settings_that_are_no_sizes_are_refused() {
    let workspace = Workspace::new();
    for (setting, value) in [
        ("KV_CACHE_MB", "0"),
        ("KV_CACHE_MB", "1e12"),
        ("KV_CACHE_MB", "18446744073709551615"),
        ("CONTEXT", "0"),
        ("CONTEXT", "1"),
        ("CONTEXT", "many"),
        ("CONTEXT", "99999999999999999999"),
    ] {
        let mut command = workspace.flowbench(&["run"]);
        let printed = run(command.env(setting, value));
        assert_eq!(printed.code, 2, "{setting}={value}: {}", printed.err);
        assert!(printed.err.contains("expected a whole number"));
    }
}

/// A limit on addresses, as `ulimit -v` sets it, is told, and not found out by an abort.
#[cfg(target_os = "linux")]
#[test]
fn a_limit_on_addresses_is_told() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let mut command = Command::new("sh");
    command
        .current_dir(workspace.path())
        .args([
            "-c",
            "ulimit -v 3000000 && exec \"$0\" run --template chain --num-flows 1 --device cpu \
             --kv-cache-mb 100000 --model \"$1\"",
        ])
        .arg(env!("CARGO_BIN_EXE_flowbench"))
        .arg(&model);
    let printed = run(&mut command);
    assert_eq!(printed.code, 3, "{}", printed.err);
    for part in [
        "there is no room for 97.7 GiB of keys and values",
        "hint: set a smaller KV_CACHE_MB",
    ] {
        assert!(printed.err.contains(part), "{}", printed.err);
    }
}
