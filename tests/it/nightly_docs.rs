//! The commands of `docs/nightly.md`, run as they stand there, and its jobs, checked.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::Workspace;

/// What a reader of the page has: `bash run.sh` in a checkout.
const RUN_SH: &str = "#!/bin/bash\nexec \"$FLOWBENCH\" \"$@\"\n";

/// Commands that need what this machine does not have: models, servers, another checkout.
const ELSEWHERE: [&str; 3] = ["MODEL=", "-endpoint ", "--b-binary "];

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/nightly.md");
    std::fs::read_to_string(path).expect("the page")
}

/// The code blocks of a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let start = format!("```{language}\n");
    let parts = page.split(start.as_str()).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap_or_default().to_owned())
        .collect()
}

#[test]
fn the_commands_of_the_page_run() {
    let workspace = Workspace::new();
    let answer = |step: &str| {
        format!(
            r#"{{"step": "{step}", "output": "It ends one early.", "ttft_ms": 2, "latency_ms": 6}}"#
        )
    };
    let lines = ["planner", "executor", "verifier"].map(answer);
    workspace.write("templates/chain.script.jsonl", lines.join("\n"));
    workspace.write("run.sh", RUN_SH);
    // The page's first night has been: its comparison needs one.
    let first = crate::common::run(&mut workspace.scripted());
    assert_eq!(first.code, 0, "{}", first.err);
    let mut ran = 0;
    for command in blocks(&page(), "bash")
        .iter()
        .flat_map(|block| block.lines())
    {
        let command = command.split(" #").next().unwrap_or_default().trim();
        if !command.contains("bash run.sh") || ELSEWHERE.iter().any(|part| command.contains(part)) {
            continue;
        }
        let output = Command::new("bash")
            .args(["-c", command])
            .current_dir(workspace.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", workspace.path())
            .env("SLURM_JOB_ID", "7")
            .env("FLOWBENCH", env!("CARGO_BIN_EXE_flowbench"))
            .envs([("MODE", "scripted"), ("TEMPLATE", "chain")])
            // Those of the page would not be those of this machine.
            .env("DEVICE", "cpu")
            .output()
            .expect("bash");
        let err = String::from_utf8_lossy(&output.stderr);
        // Runs of a few milliseconds may well differ by more than the threshold.
        let is_verdict = command.contains("compare") || command.contains(" ab ");
        let code = output.status.code();
        assert!(
            code == Some(0) || (is_verdict && code == Some(99)),
            "{command}: {code:?}\n{err}"
        );
        ran += 1;
    }
    assert!(ran >= 9, "{ran} commands ran");
}

#[test]
fn the_shell_job_is_a_script_and_the_workflow_one_of_github() {
    let page = page();
    let workspace = Workspace::new();
    let slurm = blocks(&page, "bash")
        .into_iter()
        .find(|block| block.contains("#SBATCH"));
    workspace.write("job.sh", slurm.expect("a Slurm job"));
    let parsed = Command::new("bash")
        .arg("-n")
        .arg(workspace.file("job.sh"))
        .status();
    assert!(parsed.expect("bash").success());
    workspace.write("nightly.yml", &blocks(&page, "yaml")[0]);
    let Some(python) = linter() else { return };
    let checked = Command::new(python)
        .args([
            "-m",
            "check_jsonschema",
            "--builtin-schema",
            "vendor.github-workflows",
        ])
        .arg(workspace.file("nightly.yml"))
        .output()
        .expect("Python");
    let out = String::from_utf8_lossy(&checked.stdout);
    assert!(checked.status.success(), "{out}");
}

/// A Python with check-jsonschema. If it was named for the tests, it must have it.
fn linter() -> Option<PathBuf> {
    let named = std::env::var_os("FLOWBENCH_TEST_PYTHON");
    let python = PathBuf::from(named.clone().unwrap_or_else(|| "python3".into()));
    let tried = Command::new(&python)
        .args(["-c", "import check_jsonschema"])
        .output();
    if tried.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    let required = named.is_some() && std::env::var_os("CI").is_some();
    assert!(!required, "{} lacks check-jsonschema", python.display());
    println!("skipped: {} lacks check-jsonschema", python.display());
    None
}
