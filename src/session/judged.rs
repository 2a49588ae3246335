//! After a run: its line in the history, its name as a baseline, and its gates.

use super::recorder::Recorder;
use crate::error::{Error, Exit, Result};
use crate::metrics::compare::{Quantity, of_run};
use crate::metrics::{gates, validity};
use crate::record::RECORD_SCHEMA;
use crate::record::compare::{GateResult, Invalid, MeasuredRun};
use crate::record::history::HistoryRecord;
use crate::report::verdicts;
use crate::results::{self, Identity, baselines, history};

impl Recorder<'_> {
    /// Adds `run`, which is this one, to the history, saves it as a baseline if that was asked, and prints what the gates say.
    /// Returns why the run must not pass.
    ///
    /// # Errors
    /// Exit code 110 if something cannot be written.
    pub(super) fn judge(&mut self, run: &MeasuredRun) -> Result<Option<Error>> {
        let invalid = validity::invalid(run);
        let out = &self.config.presentation.out;
        history::History::append(out, &self.line(run, &invalid))?;
        if let Some(name) = &self.config.presentation.save_baseline
            && invalid.is_empty()
        {
            baselines::save(out, name, std::slice::from_ref(&run.record.run_id))?;
        }
        let settings = &self.config.presentation.gates;
        let results = gates::check(run, settings).map_err(Error::usage)?;
        let mut lines = Vec::new();
        if settings.gate {
            lines.extend(invalid.iter().map(verdicts::invalid_line));
        }
        lines.extend(results.iter().map(verdicts::gate_line));
        for line in lines {
            self.console.result(&line)?;
        }
        let invalid: &[Invalid] = if settings.gate { &invalid } else { &[] };
        Ok(failure(invalid, &results))
    }

    /// The run's line in the history.
    fn line(&self, run: &MeasuredRun, invalid: &[Invalid]) -> HistoryRecord {
        let record = &run.record;
        let identity = Identity::of(record);
        let mut metrics = history::metrics(of_run(run));
        if record.repetition.is_some() {
            // Without the start of the engine, it is not that of other runs.
            metrics.remove(Quantity::BenchmarkTotalMs.name());
        }
        HistoryRecord {
            schema: RECORD_SCHEMA,
            run_id: record.run_id.clone(),
            folder: record.run_id.clone(),
            started_at: record.started_at.clone(),
            status: record.status,
            job: identity.job_digest(),
            machine: identity.machine_digest(),
            revision: record.environment.git_revision.clone(),
            template: record.expansion.template.clone(),
            mode: self.config.job.mode.as_str().to_owned(),
            flows: record.totals.workflows_done,
            calibration: (record.repetition.as_ref())
                .map(|repetition| repetition.calibration.clone()),
            labels: self.config.presentation.labels.iter().cloned().collect(),
            invalid: (invalid.iter().map(|flaw| flaw.reason.clone()))
                // Its times are not those of one process.
                .chain((results::segments(record) > 1).then(|| "resumed".to_owned()))
                .collect(),
            metrics,
        }
    }
}

/// The error of gates that were not passed.
pub(crate) fn failure(invalid: &[Invalid], results: &[GateResult]) -> Option<Error> {
    if let Some(first) = invalid.first() {
        let reasons: Vec<&str> = invalid.iter().map(|flaw| flaw.reason.as_str()).collect();
        let message = format!("the run is invalid: {}", reasons.join(", "));
        return Some(
            Error::new(Exit::Invalid, message)
                .hint("its figures must not be judged by; run it again")
                .caused_by(first.detail.clone()),
        );
    }
    let failed: Vec<String> = (results.iter())
        .filter(|result| !result.passed)
        .map(|result| format!("{} {}", result.gate, result.limit))
        .collect();
    (!failed.is_empty()).then(|| {
        Error::new(Exit::Gate, format!("not kept: {}", failed.join("; ")))
            .hint("the [GATE] lines have the values")
    })
}
