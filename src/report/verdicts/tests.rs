use super::*;
use crate::record::RECORD_SCHEMA;
use crate::record::compare::{ChangeInterval, ChangedOutputs, RunName};

fn record() -> CompareRecord {
    let cause = |part: f64, step: &str, term: &str, from: f64, to: f64, why: &str| Cause {
        part,
        step: step.to_owned(),
        term: term.to_owned(),
        from,
        to,
        why: why.to_owned(),
    };
    let run = |id: &str| RunName {
        run_id: id.to_owned(),
        folder: format!("results/{id}"),
        started_at: "2026-01-31T09:30:00Z".to_owned(),
    };
    let metric = MetricVerdict {
        metric: "workflow_ms".to_owned(),
        step: None,
        verdict: Verdict::Regressed,
        base: 1234.5,
        new: 1373.9,
        change: 0.113,
        change_median: 0.109,
        interval: Some(ChangeInterval {
            low: 0.081,
            high: 0.146,
            coverage: 0.95,
        }),
        smallest_visible: Some(0.043),
        threshold: 0.03,
        noise: Noise {
            deviation: Some(0.012),
            degrees: Some(4.0),
            source: "runs".to_owned(),
            history_runs: 0,
        },
        scatter: Some(0.021),
        compared: 25,
        more_runs: None,
        at_equal_tokens: false,
        causes: vec![
            cause(
                0.091,
                "executor",
                "prefill_tokens",
                610.0,
                1900.0,
                "1290 tokens no longer reused: the template changed at byte 2113 of the system message",
            ),
            cause(
                0.02,
                "planner",
                "decode_tokens",
                41.2,
                44.0,
                "answers longer in 9 of 25 flows",
            ),
            cause(
                0.0016,
                "*",
                "decode_ms_per_token",
                4.11,
                4.12,
                "within noise",
            ),
            cause(0.0004, "*", "idle", 0.1, 0.2, "within noise"),
        ],
    };
    let unknown = MetricVerdict {
        metric: "latency_ms".to_owned(),
        step: Some("planner".to_owned()),
        verdict: Verdict::NoVerdict,
        change: -0.004,
        interval: None,
        smallest_visible: None,
        noise: Noise {
            deviation: None,
            degrees: None,
            source: "unknown".to_owned(),
            history_runs: 0,
        },
        scatter: None,
        at_equal_tokens: true,
        causes: Vec::new(),
        ..metric.clone()
    };
    CompareRecord {
        schema: RECORD_SCHEMA,
        verdict: Verdict::Regressed,
        base: vec![run("20260130T093000Z-reuse"), run("20260129T093000Z-reuse")],
        new: vec![run("20260131T093000Z-reuse")],
        subject: vec![Difference {
            name: "template".to_owned(),
            base: "0123456789ab".to_owned(),
            new: "ba9876543210".to_owned(),
        }],
        allowed: vec![Difference {
            name: "os".to_owned(),
            base: "Linux 6.1".to_owned(),
            new: "Linux <6.2> | x".to_owned(),
        }],
        flows: 25,
        flows_left_out: 1,
        metrics: vec![metric, unknown],
        invalid: vec![Invalid {
            reason: "flows_missing".to_owned(),
            run_id: "20260131T093000Z-reuse".to_owned(),
            detail: "24 of 25 workflows ended well".to_owned(),
        }],
        gates: vec![GateResult {
            gate: "max".to_owned(),
            limit: "ttft_ms:200".to_owned(),
            value: 250.123,
            passed: false,
        }],
        outputs: vec![ChangedOutputs {
            step: "planner".to_owned(),
            compared: 25,
            differing: 9,
            unstable: 1,
        }],
    }
}

#[test]
fn what_programs_read() {
    insta::assert_snapshot!(lines(&record()).join("\n"));
}

#[test]
fn what_people_read() {
    insta::assert_snapshot!(markdown(&record()));
}

#[test]
fn the_page_escapes_what_it_shows() {
    let page = html(&record()).expect("renders");
    assert!(page.contains("Linux &lt;6.2&gt; | x") && !page.contains("<6.2>"));
    for part in [
        "REGRESSED",
        "+11.3%",
        "1290 tokens no longer reused",
        "24 of 25 workflows",
    ] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn figures_have_as_many_digits_as_they_deserve() {
    let texts: Vec<String> = [0.113, 0.0026, -0.00001, -0.05, 1.5, 0.00996]
        .map(percent)
        .into();
    assert_eq!(
        texts,
        ["+11.3%", "+0.26%", "+0.00%", "-5.0%", "+150.0%", "+1.0%"]
    );
    let texts: Vec<String> = [1234.5, 41.23, 4.115, 0.0, 0.0123].map(figure).into();
    assert_eq!(texts, ["1234", "41.2", "4.12", "0.00", "0.0123"]);
}
