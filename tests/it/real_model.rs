//! The whole program on the real default model, where its file is there: `FLOWBENCH_TEST_MODEL`,
//! or the user's cache. `bash run.sh test` makes sure that it is.

use crate::common::{Workspace, model, run};
use assert_cmd::Command;

fn standalone(workspace: &Workspace, model: &std::path::Path) -> Command {
    let mut command = workspace.flowbench(&["run"]);
    command
        .env("TEMPLATE", "chain")
        .env("NUM_FLOWS", "2")
        .env("MAX_TOKENS", "6")
        .env("DEVICE", "cpu")
        .env("MODEL", model);
    command
}

#[test]
fn two_runs_give_the_same_tokens_and_load_one_engine() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let first = run(&mut standalone(&workspace, &model));
    assert_eq!(first.code, 0, "{}", first.err);
    assert_eq!(first.count("[TARGET]"), 6);
    assert_eq!(first.count("[TIMING] engine_init_ms="), 1);
    let record = workspace.record();
    assert_eq!(record["engine_starts"], 1);
    assert_eq!(record["engine"]["architecture"], "llama");
    assert_eq!(record["engine"]["context_length"], 8192);
    assert!(
        record["totals"]["decode_tokens"]
            .as_u64()
            .is_some_and(|tokens| tokens > 0)
    );
    let second = run(standalone(&workspace, &model).env("OUT", "again"));
    assert_eq!(first.hashes(), second.hashes());
}

#[test]
fn prompts_grow_by_the_answer_and_the_next_question() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let printed = run(standalone(&workspace, &model)
        .env("NUM_FLOWS", "1")
        .env("IGNORE_EOS", "1"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let steps = workspace.steps();
    let prompt = |step: usize| steps[step]["prompt_tokens"].as_u64().expect("a count");
    // `append`: the former prompt, its answer of six tokens, the end of that turn and a new one.
    assert!(
        prompt(1) > prompt(0) + 6 && prompt(2) > prompt(1) + 6,
        "{steps:?}"
    );
    for step in &steps {
        assert_eq!(step["decode_tokens"], 6, "IGNORE_EOS fills the limit");
        assert_eq!(step["finish"], "length");
        assert_eq!(step["prefill_tokens"], step["prompt_tokens"]);
        assert_eq!(step["reused_tokens"], 0);
    }
}

#[test]
fn flows_in_flight_are_batched() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let printed = run(standalone(&workspace, &model)
        .env("NUM_FLOWS", "3")
        .env("CONCURRENCY", "3"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(printed.count("[TARGET]"), 9);
    assert_eq!(printed.count("[TIMING] workflow_"), 3);
}

#[test]
fn a_prompt_longer_than_the_context_fails_its_flow() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    workspace.write("fixtures/code/long.py", "x = 1 + 2 * 3\n".repeat(1500));
    let printed = run(standalone(&workspace, &model).env("NUM_FLOWS", "1"));
    assert_eq!(printed.code, 4);
    assert!(
        printed
            .err
            .contains("leaves no room in the model's context of 8192"),
        "{}",
        printed.err
    );
    assert!(
        printed
            .err
            .contains("hint: let the template include fewer fixture files")
    );
}

#[test]
fn a_damaged_file_is_refused() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let bytes = std::fs::read(&model).expect("readable");
    for (name, bytes) in [
        ("half.gguf", &bytes[..bytes.len() / 2]),
        ("header.gguf", &bytes[..1000]),
    ] {
        workspace.write(name, bytes);
        let path = workspace.file(name);
        let printed = run(&mut standalone(&workspace, &path));
        assert_eq!(printed.code, 3, "{}", printed.err);
        assert!(
            printed.err.contains(name) && printed.err.contains("hint: "),
            "{}",
            printed.err
        );
        assert!(!printed.err.contains("panicked"));
    }
}

#[test]
fn doctor_and_inspect_know_the_model() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let doctor = run(workspace.flowbench(&["doctor"]).env("MODEL", &model));
    assert_eq!(doctor.code, 0, "{}", doctor.out);
    assert!(doctor.out.lines().all(|line| !line.starts_with("fail")));
    let inspect = run(workspace
        .flowbench(&["model", "inspect"])
        .env("MODEL", &model));
    assert_eq!(inspect.code, 0, "{}", inspect.err);
    assert!(inspect.out.contains("49152 tokens"), "{}", inspect.out);
}

#[test]
fn reuse_changes_what_is_computed_and_no_output() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let printed = run(standalone(&workspace, &model)
        .env("MODE", "both")
        .env("NUM_FLOWS", "3")
        .env("ROUNDS", "2"));
    assert_eq!(printed.code, 0, "{}{}", printed.out, printed.err);
    assert_eq!(printed.count("[ROUND]"), 4);
    let record = workspace.record();
    assert_eq!(record["engine_starts"], 1);
    let comparison = &record["comparison"];
    assert_eq!(comparison["outputs"]["compared"], 9);
    assert_eq!(comparison["outputs"]["differing"], 0);
    let count = |round: &serde_json::Value, key: &str| round[key].as_u64().expect("a count");
    let rounds = comparison["rounds"].as_array().expect("rounds");
    let prompt = |round| count(round, "prefill_tokens") + count(round, "reused_tokens");
    let reused = |mode: &str| -> Vec<u64> {
        let rounds = rounds.iter().filter(|round| round["mode"] == mode);
        rounds.map(|round| count(round, "reused_tokens")).collect()
    };
    assert_eq!(reused("standalone"), [0, 0]);
    let [first, second] = reused("reuse")[..] else {
        panic!("two rounds: {rounds:?}");
    };
    // The cache starts empty each time: the second round finds as much as the first.
    assert!(first > 0 && first == second, "{first}, {second}");
    assert!(
        rounds
            .iter()
            .all(|round| prompt(round) == prompt(&rounds[0]))
    );
    // Each step finds at least the step before it, up to its answer.
    let steps = workspace.steps();
    for flow in 1..=3 {
        let of_flow: Vec<_> = steps
            .iter()
            .filter(|step| step["mode"] == "reuse" && step["round"] == 1 && step["flow"] == flow)
            .collect();
        for pair in of_flow.windows(2) {
            let known = count(pair[0], "prompt_tokens");
            assert!(count(pair[1], "reused_tokens") >= known, "{pair:?}");
        }
    }
}

/// One generation of the shipped evolution: the children's prompt is computed once, and neither reuse
/// nor company changes what they write.
#[cfg(target_os = "linux")]
#[test]
fn an_evolution_computes_each_prompt_once() {
    let Some(model) = model() else { return };
    let workspace = Workspace::new();
    let templates = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("templates");
    let template = std::fs::read(templates.join("evolve_packing.toml")).expect("it ships");
    workspace.write("templates/evolve_packing.toml", template);
    let evolve = |mode: &str| {
        let mut command = workspace.flowbench(&["run", "--template", "evolve_packing"]);
        command
            .args(["--mode", mode, "--num-flows", "2", "--out", mode])
            .args(["--set", "max_generations=1,max_tokens=24"])
            .args(["--device", "cpu", "--model"])
            .arg(&model);
        let printed = run(&mut command);
        assert_eq!(printed.code, 0, "{}", printed.err);
        let steps = workspace.runs(mode).remove(0).join("steps.jsonl");
        let steps = std::fs::read_to_string(steps).expect("steps");
        let mut steps: Vec<serde_json::Value> = (steps.lines())
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .filter(|step: &serde_json::Value| step.get("kind").is_none())
            .collect();
        steps.sort_by_key(|step| format!("{} {} {}", step["flow"], step["step"], step["sample"]));
        steps
    };
    let standalone = evolve("standalone");
    assert_eq!(standalone.len(), 8);
    for step in &standalone {
        let computed = match step["sample"].as_u64() {
            Some(2 | 3) => 0,
            _ => step["prompt_tokens"].as_u64().expect("a count"),
        };
        assert_eq!(step["prefill_tokens"], computed, "{step}");
    }
    let hashes = |steps: &[serde_json::Value]| -> Vec<String> {
        steps
            .iter()
            .map(|step| step["out_hash"].to_string())
            .collect()
    };
    let alone = hashes(&standalone);
    assert_eq!(alone, hashes(&evolve("reuse")));
    let children: std::collections::HashSet<_> = alone[..3].iter().collect();
    assert_eq!(children.len(), 3, "each child has a seed of its own");
}
