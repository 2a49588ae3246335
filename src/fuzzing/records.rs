//! Laws of what runs leave on disk.

use std::path::Path;

use super::files;
use super::folder::Folder;
use crate::config::{ExportFormat, Gates};
use crate::metrics::compare::{Metric, Quantity, Steps};
use crate::metrics::{gates, validity};
use crate::record::RunRecord;
use crate::record::compare::Verdict;
use crate::record::history::HistoryRecord;
use crate::report::{Console, diagnose, export, history as trend, page, summary, timing, verdicts};
use crate::results::history::{FILE, History};
use crate::results::{SavedRun, baselines, read_measured, runs};
use crate::session::{self, CompareRequest, TrendRequest};

const FORMATS: [ExportFormat; 8] = [
    ExportFormat::Junit,
    ExportFormat::GithubBenchmark,
    ExportFormat::GithubBenchmarkBigger,
    ExportFormat::Bencher,
    ExportFormat::Csv,
    ExportFormat::Openmetrics,
    ExportFormat::Otlp,
    ExportFormat::GithubSummary,
];

fn console() -> Console {
    Console::new(Box::new(std::io::sink()), Box::new(std::io::sink()), true)
}

/// `run.json` and `steps.jsonl`. What is read is written equal; every report can be made of it, and no two equal
/// runs differ.
pub(super) fn records(data: &[u8]) {
    let [record, steps] = files(data);
    let folder = Folder::new();
    for name in ["a", "b"] {
        folder.write(&format!("{name}/run.json"), record);
        folder.write(&format!("{name}/steps.jsonl"), steps);
    }
    let Ok(run) = SavedRun::read(Some(&folder.file("a")), folder.path()) else {
        return;
    };
    let text = serde_json::to_vec(&run.record).expect("a record is JSON");
    let again: RunRecord = serde_json::from_slice(&text).expect("what was written");
    assert_eq!(again, run.record);
    show(&run);
    if let Ok(measured) = read_measured(&folder.file("a")) {
        let _ = validity::invalid(&measured);
        let _ = gates::check(
            &measured,
            &Gates {
                gate: true,
                max: vec!["latency_ms:p95:100ms".to_owned()],
                goodput: vec!["ttft:200ms".to_owned()],
                min_goodput: Some(0.9),
            },
        );
    }
    compare(folder.path());
}

fn show(run: &SavedRun) {
    let (record, steps) = (&run.record, &run.steps);
    let _ = page::html(record, steps, &run.evolutions);
    let _ = page::markdown(record, steps, &run.evolutions);
    let diagnosis = diagnose::diagnose(record, steps);
    let _ = diagnose::markdown(&diagnosis);
    serde_json::to_string(&diagnosis).expect("a diagnosis is JSON");
    let run = export::Run {
        record,
        steps,
        evolutions: &run.evolutions,
    };
    for format in FORMATS {
        if let Ok(text) = export::export(format, run, 10_000) {
            assert!(text.ends_with('\n'));
        }
    }
    let _ = summary::line(record, "next");
    let _ = timing::totals(&record.totals, record.workflows.len());
    for step in steps {
        let _ = timing::target(step);
    }
}

/// Two equal runs.
fn compare(out: &Path) {
    let metrics = [Quantity::WorkflowMs, Quantity::LatencyMs].map(|quantity| Metric {
        quantity,
        steps: Steps::All,
    });
    let compared = session::compared(
        &CompareRequest {
            base: &out.join("a").display().to_string(),
            new: &out.join("b").display().to_string(),
            out,
            metrics: &metrics,
            threshold: 0.05,
            subject: &[],
            allow_different: &[],
            assumed_noise: Some(0.01),
            gates: &Gates::default(),
        },
        &mut console(),
    );
    let Ok(compared) = compared else {
        return;
    };
    let verdict = compared.record.verdict;
    assert!(
        !matches!(verdict, Verdict::Regressed | Verdict::Improved),
        "{verdict:?}"
    );
    let _ = verdicts::markdown(&compared.record);
    serde_json::to_string(&compared.record).expect("a comparison is JSON");
}

/// `history.jsonl` and `baselines.json`. A run that is appended is read back, whatever stood before it.
pub(super) fn history(data: &[u8]) {
    let [lines, names] = files(data);
    let folder = Folder::new();
    let out = folder.path();
    folder.write(FILE, lines);
    folder.write("baselines.json", names);
    if let Ok(names) = baselines::read(out) {
        for name in names.keys() {
            let _ = runs::resolve(name, out);
        }
    }
    let history = History::read(out).expect("a bad line is a note");
    for run in &history.runs {
        let text = serde_json::to_vec(run).expect("a record is JSON");
        let again: HistoryRecord = serde_json::from_slice(&text).expect("what was written");
        assert_eq!(&again, run);
    }
    for quantity in [Quantity::WorkflowMs, Quantity::TtftMs] {
        let metric = Metric {
            quantity,
            steps: Steps::All,
        };
        let request = TrendRequest {
            out,
            metric: &metric,
            last: 50,
            run: None,
        };
        if let Ok(found) = session::trend(&request, &mut console()) {
            let _ = trend::lines(&found);
            let _ = trend::html(&found);
            serde_json::to_string(&found).expect("a trend is JSON");
        }
    }
    if let Some(run) = history.runs.first() {
        History::append(out, run).expect("the folder can be written");
        let after = History::read(out).expect("as before");
        assert_eq!(after.runs.last(), Some(run));
        assert_eq!(after.runs.len(), history.runs.len() + 1);
    }
}
