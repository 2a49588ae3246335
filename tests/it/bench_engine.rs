//! `flowbench bench-engine`, end to end: what it prints, never how fast it is.

use crate::common::{Workspace, model, run};
use serde_json::Value;

const SMALL: [&str; 13] = [
    "bench-engine",
    "-p",
    "8",
    "-n",
    "2",
    "-b",
    "1,2",
    "-r",
    "2",
    "-c",
    "20",
    "--device",
    "cpu",
];

fn small(format: &str, backend: &str) -> Option<String> {
    let model = model()?;
    let workspace = Workspace::new();
    let mut command = workspace.flowbench(&SMALL);
    command.args(["-o", format, "--backend", backend]);
    let printed = run(command.env("MODEL", &model));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(printed.err.matches("Round ").count(), 2, "{}", printed.err);
    Some(printed.out)
}

/// A number above zero.
fn positive(value: &Value) -> bool {
    value.as_f64().is_some_and(|number| number > 0.0)
}

#[test]
fn every_figure_is_there() {
    let Some(out) = small("json", "native") else {
        return;
    };
    let record: Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(record["complete"], true);
    assert_eq!(record["backend"], "native");
    assert!(positive(&record["engine_init_ms"]));
    assert!(positive(&record["ceilings"]["read_gb_s"]));
    assert!(positive(&record["ceilings"]["int8_gmac_s"]));
    let tests = record["tests"].as_array().expect("tests");
    let facts: Vec<_> = tests
        .iter()
        .map(|test| (test["name"].as_str(), test["batch"].as_u64()))
        .collect();
    assert_eq!(
        facts,
        [
            (Some("pp8"), Some(1)),
            (Some("tg2"), Some(1)),
            (Some("tg2"), Some(2))
        ]
    );
    for test in tests {
        assert_eq!(test["samples_ms"].as_array().map(Vec::len), Some(2));
        for figure in [
            "tokens_per_second",
            "best",
            "gb_s",
            "read_share",
            "gmac_s",
            "int8_share",
        ] {
            assert!(positive(&test[figure]), "{figure} of {test}");
        }
        assert!(test["deviation"].is_f64());
    }
    // Twice the sequences: the weights are streamed once, and the work is twice as much.
    let work = |index: usize, what: &str| tests[index]["work"][what].as_u64().expect("known");
    assert_eq!(work(2, "macs"), 2 * work(1, "macs"));
    assert!(work(2, "bytes") < work(1, "bytes") * 11 / 10);
}

#[test]
fn a_backend_that_keeps_memory_by_the_sequence_is_measured_too() {
    let Some(out) = small("jsonl", "candle") else {
        return;
    };
    let lines: Vec<Value> = out
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    assert_eq!(lines.len(), 3);
    for line in &lines {
        assert_eq!(line["backend"], "candle");
        assert_eq!(line["gb_s"], Value::Null);
        assert!(positive(&line["gmac_s"]));
    }
}

#[test]
fn tables() {
    let Some(out) = small("md", "auto") else {
        return;
    };
    assert_eq!(out.lines().filter(|line| line.starts_with('|')).count(), 5);
    assert!(out.contains("| tg2 "), "{out}");
    let Some(out) = small("csv", "auto") else {
        return;
    };
    assert_eq!(out.lines().count(), 4);
}

#[test]
fn what_does_not_fit_is_refused_with_a_hint() {
    let workspace = Workspace::new();
    let refused = |arguments: &[&str], model: Option<&std::path::Path>| {
        let mut command = workspace.flowbench(&["bench-engine", "--device", "cpu"]);
        if let Some(model) = model {
            command.env("MODEL", model);
        }
        let printed = run(command.args(arguments));
        assert_eq!(
            (printed.code, printed.out.as_str()),
            (2, ""),
            "{arguments:?}"
        );
        printed.err
    };
    let nothing = refused(&["-p", "0", "-n", "0"], None);
    assert!(nothing.contains("nothing to measure") && nothing.contains("hint: "));
    for mistake in [
        ["-b", "0"],
        ["-b", "1,,2"],
        ["-r", "0"],
        ["-o", "xml"],
        ["-p", "-1"],
    ] {
        refused(&mistake, None);
    }

    let Some(model) = model() else { return };
    for (arguments, problem) in [
        (&["-p", "9000"][..], "a prompt of 9000 tokens does not fit"),
        (&["-c", "8100"], "128 tokens after a context of 8100"),
        // As llama-bench calls it.
        (&["-d", "8100"], "128 tokens after a context of 8100"),
        (
            &["-b", "100", "--kv-cache-mb", "64"],
            "the keys and values of 100 sequences of",
        ),
        (
            &["-b", "100", "--kv-cache-mb", "64"],
            "tokens take 1.2 GiB, and there is room for 64.0 MiB",
        ),
        (
            &["--kv-cache-mb", "1"],
            "the keys and values of 1 sequence of 512 tokens take 11.6 MiB",
        ),
        (&["--backend", "generic"], "computes at once (1)"),
    ] {
        let error = refused(arguments, Some(&model));
        assert!(
            error.contains(problem) && error.contains("hint: "),
            "{error}"
        );
    }
}
