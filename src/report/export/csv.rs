//! The steps of a run as CSV (RFC 4180, lines end in LF), one line per step and sample. An empty field is an
//! unknown value.

use crate::error::{Error, Result};
use crate::record::{RunRecord, StepRecord};
use crate::units::Millis;

/// The value of a column.
type Column = fn(&StepRecord) -> String;

/// The columns of the steps, with the names of `steps.schema.json`.
const COLUMNS: &[(&str, Column)] = &[
    ("flow", |step| step.flow.to_string()),
    ("row", |step| step.row.clone()),
    ("round", |step| known(step.round)),
    ("mode", |step| step.mode.clone().unwrap_or_default()),
    ("step", |step| step.step.clone()),
    ("kind", |step| step.kind().to_owned()),
    ("sample", |step| known(step.sample)),
    ("generation", |step| known(step.generation)),
    ("needs", |step| step.needs.join(" ")),
    ("start_ms", |step| ms(Some(step.start_ms))),
    ("queue_ms", |step| ms(step.queue_ms)),
    ("latency_ms", |step| ms(Some(step.latency_ms))),
    ("ttft_ms", |step| ms(step.ttft_ms)),
    ("tpot_ms", |step| ms(step.tpot_ms)),
    ("prefill_tokens_per_s", |step| {
        known(step.prefill_tokens_per_s)
    }),
    ("decode_tokens_per_s", |step| {
        known(step.decode_tokens_per_s)
    }),
    ("prompt_tokens", |step| step.tokens.prompt.to_string()),
    ("prefill_tokens", |step| step.tokens.prefill.to_string()),
    ("reused_tokens", |step| step.tokens.reused.to_string()),
    ("decode_tokens", |step| step.tokens.decode.to_string()),
    ("drafted_tokens", |step| step.tokens.drafted.to_string()),
    ("accepted_tokens", |step| step.tokens.accepted.to_string()),
    ("reasoning_tokens", |step| known(step.reasoning_tokens)),
    ("hidden_tokens", |step| known(step.hidden_tokens)),
    ("attempts", |step| known(step.attempts)),
    ("burst", |step| step.burst.to_string()),
    ("pinned", |step| step.pinned.to_string()),
    ("finish", |step| step.finish.clone()),
    ("outcome", |step| step.outcome.clone().unwrap_or_default()),
    ("score", |step| known(step.score)),
    ("answer", |step| step.answer.clone().unwrap_or_default()),
    ("detail", |step| step.detail.clone().unwrap_or_default()),
    ("out_hash", |step| step.out_hash.clone()),
    ("output", |step| step.output.clone()),
];

/// Columns of the run, which are the same in each line, so that files can be put together.
const RUN: [&str; 2] = ["run_id", "template"];

fn known(value: Option<impl ToString>) -> String {
    value.map(|value| value.to_string()).unwrap_or_default()
}

fn ms(value: Option<Millis>) -> String {
    known(value.map(|ms| ms.0))
}

/// # Errors
/// Exit code 110 if a line cannot be made, which would be a bug.
pub(super) fn text(run: &RunRecord, steps: &[StepRecord]) -> Result<String> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| {
        Error::output("failed to make CSV").caused_by(source)
    };
    let mut table = csv::Writer::from_writer(Vec::new());
    let names = RUN.into_iter().chain(COLUMNS.iter().map(|(name, _)| *name));
    table
        .write_record(names)
        .map_err(|source| failed(source.into()))?;
    for step in steps {
        let of_run = [run.run_id.clone(), run.expansion.template.clone()];
        let own = COLUMNS.iter().map(|(_, value)| value(step));
        // pandas and others end a text at NUL.
        let fields = of_run
            .into_iter()
            .chain(own)
            .map(|field| field.replace('\0', "\u{fffd}"));
        table
            .write_record(fields)
            .map_err(|source| failed(source.into()))?;
    }
    let bytes = table
        .into_inner()
        .map_err(|source| failed(source.into_error().into()))?;
    String::from_utf8(bytes).map_err(|source| failed(source.into()))
}
