//! What holds for all formats, and for any text in a run.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::record::WorkflowRecord;
use crate::report::testing;
use crate::units::Millis;

const FIGURES: [ExportFormat; 4] = [
    ExportFormat::GithubBenchmark,
    ExportFormat::GithubBenchmarkBigger,
    ExportFormat::Bencher,
    ExportFormat::Openmetrics,
];

const OTHERS: [ExportFormat; 4] = [
    ExportFormat::Junit,
    ExportFormat::Csv,
    ExportFormat::Otlp,
    ExportFormat::GithubSummary,
];

fn exported(format: ExportFormat, record: &RunRecord, steps: &[StepRecord]) -> Result<String> {
    let run = Run {
        record,
        steps,
        evolutions: &[],
    };
    export(format, run, SUMMARY_LIMIT)
}

/// A run with everything that the metrics are made of.
fn whole() -> (RunRecord, Vec<StepRecord>) {
    let (mut record, mut steps) = testing::run(8, 1.0, 20.0, 60.0);
    let mut tally = crate::metrics::Tally::default();
    for step in &mut steps {
        step.prefill_tokens_per_s = Some(40.0);
        step.decode_tokens_per_s = Some(20.0);
        tally.step(step);
    }
    for flow in &mut record.workflows {
        flow.reward = Some(1.0 / flow.flow as f64);
        tally.workflow(flow);
    }
    tally.set_totals(&mut record.totals);
    record.gpu = Some(testing::gpu());
    (record, steps)
}

#[test]
fn every_metric_is_exported_by_its_name_and_documented() {
    let (record, steps) = whole();
    let all: Vec<(ExportFormat, String)> = (FIGURES.iter().chain(&[ExportFormat::Junit]))
        .map(|format| {
            (
                *format,
                exported(*format, &record, &steps).expect("figures"),
            )
        })
        .collect();
    let docs = include_str!("../../../docs/exports.md");
    for metric in metrics::ALL {
        for (format, text) in &all {
            let wanted = match format {
                ExportFormat::GithubBenchmark => metric.better == metrics::Better::Smaller,
                ExportFormat::GithubBenchmarkBigger => metric.better == metrics::Better::Bigger,
                _ => true,
            };
            let name = metric.name;
            let written = match format {
                ExportFormat::Bencher => format!("\"{name}\": {{"),
                ExportFormat::Openmetrics => format!("# TYPE flowbench_{name} gauge\n"),
                ExportFormat::Junit => format!("{name}\" value="),
                _ => format!("/{name}\","),
            };
            assert_eq!(text.contains(&written), wanted, "{name} in {format:?}");
        }
        let better = match metric.better {
            metrics::Better::Smaller => "smaller",
            metrics::Better::Bigger => "bigger",
            metrics::Better::Neither => "",
        };
        let row = format!("| `{}` | {} | {better} |", metric.name, metric.unit);
        assert!(docs.contains(&row), "docs/exports.md lacks {row}");
    }
}

#[test]
fn the_value_is_the_median_with_its_scatter() {
    let (record, steps) = whole();
    let spread = record.totals.workflow_ms.as_ref().expect("eight workflows");
    let interval = spread.median_interval.expect("eight are enough");
    let text = exported(ExportFormat::Bencher, &record, &steps).expect("figures");
    let bencher: Value = serde_json::from_str(&text).expect("JSON");
    let measure = &bencher["three_step"]["workflow_ms"];
    assert_eq!(measure["value"].as_f64(), spread.median);
    assert_eq!(measure["lower_value"].as_f64(), Some(interval.low));
    assert_eq!(measure["upper_value"].as_f64(), Some(interval.high));

    let text = exported(ExportFormat::GithubBenchmark, &record, &steps).expect("figures");
    let entries: Vec<Value> = serde_json::from_str(&text).expect("JSON");
    let deviation = spread.deviation.expect("eight values");
    assert_eq!(entries[0]["name"], "three_step/workflow_ms");
    assert_eq!(entries[0]["value"].as_f64(), spread.median);
    assert_eq!(entries[0]["range"], format!("± {deviation:.3}"));
}

#[test]
fn the_modes_of_both_are_apart() {
    let (mut record, steps) = whole();
    record.totals.workflow_ms = None;
    record.comparison = Some(crate::record::Comparison::default());
    for flow in &mut record.workflows {
        let mode = crate::metrics::ARMS[flow.flow % 2];
        flow.mode = Some(mode.to_owned());
        flow.round = Some(1);
        flow.workflow_ms = Millis(if mode == "reuse" { 5.0 } else { 10.0 });
    }
    let text = exported(ExportFormat::Bencher, &record, &steps).expect("figures");
    let bencher: Value = serde_json::from_str(&text).expect("JSON");
    for (subject, ms) in [("three_step[standalone]", 10.0), ("three_step[reuse]", 5.0)] {
        assert_eq!(bencher[subject]["workflow_ms"]["value"], ms, "{text}");
    }
    let text = exported(ExportFormat::Junit, &record, &steps).expect("a suite");
    assert!(
        text.contains("name=\"flow 1: row-1 (reuse, round 1)\""),
        "{text}"
    );
}

#[test]
fn a_run_in_progress_has_no_figures_but_steps() {
    let (mut record, steps) = whole();
    record.status = Status::Running;
    record.workflows.truncate(1);
    for format in FIGURES {
        let error = exported(format, &record, &steps).expect_err("in progress");
        assert_eq!(error.exit(), Exit::Usage, "{format:?}");
        assert!(error.hint_text().is_some());
    }
    for format in OTHERS {
        exported(format, &record, &steps).expect("what there is");
    }
    let text = exported(ExportFormat::Junit, &record, &steps).expect("a suite");
    assert!(text.contains("<error type=\"run\" message=\"the run has not ended, or was killed\">"));
    // Steps of flows that the record does not list have a root, too.
    let text = exported(ExportFormat::Otlp, &record, &steps).expect("spans");
    assert_eq!(
        text.matches("\"name\":\"invoke_workflow three_step\"")
            .count(),
        8
    );
}

#[test]
fn failed_and_missing_workflows_are_told() {
    let (mut record, steps) = whole();
    record.status = Status::Failed;
    for flow in &mut record.workflows {
        flow.error = Some("the server said\n\"no\"".to_owned());
    }
    record.totals.workflows_failed = 8;
    record.totals.workflows_done = 0;
    let junit = |record: &RunRecord| exported(ExportFormat::Junit, record, &[]).expect("a suite");
    let text = junit(&record);
    assert!(
        text.contains("tests=\"8\" failures=\"8\" errors=\"0\""),
        "{text}"
    );
    assert!(
        text.contains("message=\"the server said\">the server said\n\"no\"</failure>"),
        "{text}"
    );
    for format in [ExportFormat::GithubBenchmark, ExportFormat::Bencher] {
        let error = exported(format, &record, &steps).expect_err("all failed");
        assert_eq!(error.exit(), Exit::NothingRan);
    }
    let text = exported(ExportFormat::Openmetrics, &record, &steps).expect("counts");
    assert!(text.contains("result=\"failed\"} 8\n"), "{text}");

    // A suite without a case would pass.
    record.workflows.clear();
    record.totals.workflows_failed = 0;
    record.status = Status::Complete;
    assert!(junit(&record).contains("message=\"no workflow ran\""));
    record.status = Status::Failed;
    record.error = Some("outputs differ".to_owned());
    assert!(junit(&record).contains("message=\"outputs differ\""));
}

#[test]
fn a_start_that_is_no_time_is_an_error() {
    let (mut record, steps) = whole();
    record.started_at = "yesterday".to_owned();
    let error = exported(ExportFormat::Otlp, &record, &steps).expect_err("no time");
    assert_eq!(error.exit(), Exit::Usage);
}

#[test]
fn spans_of_a_flow_are_one_trace_and_linked() {
    let (record, steps) = whole();
    let text = exported(ExportFormat::Otlp, &record, &steps).expect("spans");
    let all: Value = serde_json::from_str(&text).expect("JSON");
    let spans = all["resourceSpans"][0]["scopeSpans"][0]["spans"]
        .as_array()
        .expect("spans");
    let [root, planner, executor, ..] = &spans[..] else {
        panic!("{text}");
    };
    assert_eq!(root["traceId"].as_str().map(str::len), Some(32));
    assert_eq!(planner["traceId"], root["traceId"]);
    assert_eq!(planner["parentSpanId"], root["spanId"]);
    assert_eq!(executor["links"][0]["spanId"], planner["spanId"]);
    // 2026-01-02T03:04:05Z and 200 ms of engine start.
    assert_eq!(root["startTimeUnixNano"], "1767323045200000000");
    // The same export again has the same ids.
    assert_eq!(
        exported(ExportFormat::Otlp, &record, &steps).expect("spans"),
        text
    );
}

/// What an XML parser makes of an escaped text.
fn parsed(text: &str) -> String {
    let mut text = text.to_owned();
    for (reference, character) in [
        ("&lt;", "<"),
        ("&gt;", ">"),
        ("&quot;", "\""),
        ("&#10;", "\n"),
        ("&#9;", "\t"),
        ("&#13;", "\r"),
        ("&amp;", "&"),
    ] {
        text = text.replace(reference, character);
    }
    text
}

/// Text with many of the characters that formats give a meaning to.
fn hostile() -> impl Strategy<Value = String> {
    let special =
        "[\\x00-\\x1f\"'&<>\\]\\[{}\\\\,;=|`*#\u{7f}-\u{a0}\u{2028}\u{202e}\u{fffe}\u{ffff}]";
    prop_oneof![
        proptest::collection::vec(special, 0..12).prop_map(|parts| parts.concat()),
        any::<String>(),
    ]
}

proptest! {
    #[test]
    fn xml_has_only_what_it_allows(text in hostile()) {
        for (escaped, in_attribute) in [(junit::attribute(&text), true), (junit::content(&text), false)] {
            prop_assert!(escaped.chars().all(junit::is_xml));
            prop_assert!(!escaped.contains(['<', '>', '\r']));
            prop_assert!(!in_attribute || !escaped.contains(['"', '\n', '\t']));
            if text.chars().all(junit::is_xml) {
                prop_assert_eq!(parsed(&escaped), text.as_str());
            }
        }
    }

    #[test]
    fn labels_are_on_one_line_and_end_at_their_quote(text in hostile()) {
        let escaped = openmetrics::escaped(&text);
        prop_assert!(!escaped.contains('\n'));
        let mut rest = escaped.chars();
        let mut back = String::new();
        while let Some(character) = rest.next() {
            prop_assert!(character != '"');
            back.push(match character {
                '\\' => match rest.next() {
                    Some('n') => '\n',
                    Some(other) => other,
                    None => panic!("a backslash would escape the quote"),
                },
                other => other,
            });
        }
        prop_assert_eq!(back, text);
    }

    #[test]
    fn tables_keep_every_text(row in hostile(), output in hostile(), detail in hostile()) {
        let step = StepRecord {
            row: row.clone(),
            output: output.clone(),
            detail: Some(detail.clone()),
            ..StepRecord::default()
        };
        let (record, _) = testing::run(1, 0.0, 1.0, 1.0);
        let text = exported(ExportFormat::Csv, &record, &[step.clone(), step]).expect("CSV");
        let mut table = ::csv::Reader::from_reader(text.as_bytes());
        let names: Vec<String> = table.headers().expect("a line").iter().map(str::to_owned).collect();
        let lines: Vec<::csv::StringRecord> = table.records().map(|line| line.expect("a line")).collect();
        prop_assert_eq!(lines.len(), 2);
        for (name, expected) in [("row", &row), ("output", &output), ("detail", &detail)] {
            let column = names.iter().position(|known| known == name).expect("a column");
            prop_assert_eq!(&lines[0][column], expected.replace('\0', "\u{fffd}"));
        }
    }

    #[test]
    fn json_is_json_whatever_the_texts(text in hostile()) {
        let (mut record, mut steps) = testing::run(1, 0.0, 1.0, 1.0);
        record.expansion.template.clone_from(&text);
        record.workflows = vec![WorkflowRecord {
            flow: 1,
            row: text.clone(),
            error: Some(text.clone()),
            ..WorkflowRecord::default()
        }];
        steps[0].row.clone_from(&text);
        let spans = exported(ExportFormat::Otlp, &record, &steps).expect("spans");
        prop_assert_eq!(spans.lines().count(), 1);
        prop_assert!(serde_json::from_str::<Value>(&spans).is_ok());
        let bencher = exported(ExportFormat::Bencher, &record, &steps).expect("figures");
        let bencher: Value = serde_json::from_str(&bencher).expect("JSON");
        prop_assert!(bencher.get(&text).is_some());
    }
}
