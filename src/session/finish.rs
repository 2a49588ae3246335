//! The end of a run: totals, verdict, files, and the last lines on the terminal.

use std::sync::{Mutex, PoisonError, TryLockError};
use std::time::Duration;

use serde_json::Value;

use super::expansion;
use super::recorder::{Recorder, is_recorded};
use super::verdict::verdict;
use crate::config::Limits;
use crate::error::{Error, Exit, Result};
use crate::flow::Expansion;
use crate::metrics;
use crate::profile;
use crate::record::compare::MeasuredRun;
use crate::record::segment::SegmentEnd;
use crate::record::{Energy, Status};
use crate::report::{gpu, summary, table, timing, traffic, validity, warnings};
use crate::results::{self, Recording, RolloutFile};
use crate::stopwatch::Timer;
use crate::workflow::{Accounts, Outcome};

/// Held while the run's files are saved.
static SAVING: Mutex<()> = Mutex::new(());

/// Before the process exits from another thread: writes the profile if the run has not done so, and waits
/// for files that are being saved, at most `limit`.
pub(crate) fn save_before_exit(limit: Duration) {
    let _ = results::write_pending();
    let timer = Timer::start();
    while matches!(SAVING.try_lock(), Err(TryLockError::WouldBlock)) && timer.elapsed() < limit {
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl Recorder<'_> {
    /// Ends a run whose workflows have all ended: those of a resumed run were killed before its end, or its rows
    /// were all done by earlier runs.
    pub(super) fn nothing_to_run(mut self, expansion: &Expansion) -> Result<Exit> {
        if self.kept.segment.is_some() {
            self.begin_recording()?;
            let limits = Limits::default();
            let model = self.kept.engine.get("model").and_then(Value::as_str);
            let model = model.unwrap_or_default();
            let mut accounts = Accounts::new(model, self.config.job.prices, limits);
            self.enter_usage(&mut accounts);
            self.record.totals.usage = accounts.usage().to_vec();
            self.record.totals.benchmark_total_ms = Some(self.kept.benchmark_ms);
            expansion::record_prefix(expansion, &mut self.record.expansion);
            let num_workflows = self.kept.workflows.len();
            return self.finish(Ok(Outcome::Ended), num_workflows, &mut None);
        }
        if let Some(rollouts) = self.files.rollouts.take() {
            let rollouts = rollouts.finish()?;
            self.console.progress("Every row is done already");
            self.console.result(&timing::rollouts(&rollouts))?;
        }
        self.discard();
        Ok(Exit::Done)
    }

    /// Ends a run that measured nothing: removes its folder, or leaves that of a resumed run as it is.
    pub(super) fn discard(self) {
        if let Some(recording) = self.files.recording {
            recording.forget();
        }
        self.files.profile.forget();
        if self.kept.segment.is_none() {
            self.files.folder.discard();
        }
    }

    /// Starts `--record`, if it was given, with what earlier segments have measured.
    pub(super) fn begin_recording(&mut self) -> Result<()> {
        let Some(path) = self.config.presentation.record.as_deref() else {
            return Ok(());
        };
        let mut recording = Recording::create(path)?;
        for step in self.kept.steps.iter().filter(|step| is_recorded(step)) {
            recording.add(step)?;
        }
        self.files.recording = Some(recording);
        Ok(())
    }

    /// Completes the record, saves it, and prints the totals. `result` is how the flows ended, of which
    /// there were to be `num_workflows`. Sets `measured` to the run as it is read back.
    ///
    /// # Errors
    /// Why the run did not end well, or what could not be written.
    pub(super) fn finish(
        mut self,
        result: Result<Outcome>,
        num_workflows: usize,
        measured: &mut Option<MeasuredRun>,
    ) -> Result<Exit> {
        // Nothing was measured without an engine.
        let settled = match self.record.engine_starts {
            0 => Ok(()),
            _ => {
                let _saving = SAVING.lock().unwrap_or_else(PoisonError::into_inner);
                self.settle()
            }
        };
        self.set_totals();
        self.end_segment(&result);
        let comparison = self.record.comparison.as_ref();
        let outputs = comparison.map(|comparison| &comparison.outputs);
        let (status, error) = match result {
            Ok(outcome) => verdict(&outcome, &self.record.totals, num_workflows, outputs),
            Err(error) if !self.has_engine => {
                self.discard();
                return Err(error);
            }
            Err(error) => (Status::Incomplete, Some(error)),
        };
        self.record.status = status;
        self.record.error = error.as_ref().map(Error::chain);
        self.record.environment.load = self.load.read();
        self.record.warnings = warnings::warnings(&self.record, &self.gathered);

        // Saved before it is printed: a closed pipe must not cost the record.
        let saved = self.save_all(status == Status::Complete);
        self.print_totals(num_workflows)?;
        saved.and(settled)?;
        let run = measured.insert(results::read_measured(self.files.folder.path())?);
        let judged = self.judge(run)?;
        if let Some(line) = gpu::line(&self.record) {
            self.console.progress(&line);
        }
        // The line on the GPU has the energy of its counter.
        let of_gpu = self.record.gpu.as_ref().and_then(|gpu| gpu.energy_joules);
        if let (None, Some(line)) = (of_gpu, validity::energy_line(&self.record)) {
            self.console.progress(&line);
        }
        let next = self.next_command();
        if let Some(line) = summary::line(&self.record, &next) {
            self.console.progress(&line);
        }
        let folder = self.files.folder.path();
        self.console.result(&timing::run(folder))?;
        let error = match (judged, error) {
            // What failed is told, too.
            (Some(judged), Some(error)) => Some(judged.caused_by(error)),
            (judged, error) => judged.or(error),
        };
        match error {
            None => Ok(Exit::Done),
            Some(error) => Err(error.hint(format!("what was measured is in {}", folder.display()))),
        }
    }

    /// Notes when and how this segment ended.
    fn end_segment(&mut self, result: &Result<Outcome>) {
        if let Some(segment) = self.record.segments.last_mut() {
            segment.ended_at = Some(jiff::Timestamp::now().to_string());
            segment.end = match result {
                Ok(Outcome::Ended) => SegmentEnd::Ended,
                Ok(Outcome::Interrupted) => SegmentEnd::Interrupted,
                Ok(Outcome::Limited(_)) => SegmentEnd::Limit,
                Err(_) => SegmentEnd::Error,
            };
        }
    }

    fn set_totals(&mut self) {
        let totals = &mut self.record.totals;
        self.tally.set_totals(totals);
        if let (None, Some(watts), Some(total)) = (
            &totals.energy,
            self.config.machine.gpu_power,
            totals.benchmark_total_ms,
        ) {
            totals.energy = Some(Energy {
                source: "assumed".to_owned(),
                watts,
                joules: watts * total.seconds(),
                ..Energy::default()
            });
        }
        // Of two modes, they would describe neither.
        if let Some(energy) = (totals.energy.as_mut()).filter(|_| self.rounds.is_none()) {
            let correct = (self.record.workflows.iter()).filter(|flow| metrics::is_correct(flow));
            metrics::set_rates(energy, totals.tokens.decode, correct.count());
        }
        self.record.workflows.sort_by_key(|workflow| workflow.flow);
    }

    /// Writes every file, even after one of them failed; returns the first error.
    fn save_all(&mut self, complete: bool) -> Result<()> {
        let _saving = SAVING.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = self.finish_recording(complete);
        let evolved = self.files.evolution.finish();
        let rollouts = self.files.rollouts.take();
        let rolled = rollouts.map(RolloutFile::finish).transpose();
        let rolled = rolled.map(|rollouts| self.record.rollouts = rollouts);
        self.record.profile = profile::snapshot();
        (self.files.folder.save(&self.record))
            .and_then(|()| self.files.profile.write(self.record.profile.as_ref()))
            .and(recorded)
            .and(evolved)
            .and(rolled)
    }

    /// Moves the recording to its target, or says where an incomplete one is.
    fn finish_recording(&mut self, complete: bool) -> Result<()> {
        let Some(recording) = self.files.recording.take() else {
            return Ok(());
        };
        let path = recording.finish(complete)?;
        if !complete {
            let path = path.display();
            self.console
                .warning(&format!("the recording in {path} is not that of all flows"));
        }
        Ok(())
    }

    fn print_totals(&mut self, num_workflows: usize) -> Result<()> {
        let totals = &self.record.totals;
        let mut lines = Vec::new();
        if totals.benchmark_total_ms.is_some() {
            lines.extend(timing::totals(totals, num_workflows));
        }
        lines.extend(timing::scores(totals));
        lines.extend(timing::failures(totals));
        match &self.record.rollouts {
            Some(rollouts) => lines.push(timing::rollouts(rollouts)),
            None => lines.extend(timing::reward(totals)),
        }
        lines.extend(totals.remote.as_ref().map(traffic::line));
        if let Some(comparison) = &self.record.comparison {
            lines.extend(table::comparison(comparison));
        }
        for line in lines {
            self.console.result(&line)?;
        }
        for warning in &self.record.warnings {
            self.console.warning(&format!("warning: {warning}"));
        }
        Ok(())
    }

    /// The command that shows where the time went.
    fn next_command(&self) -> String {
        let script = self.config.machine.layout.run_script();
        let program = script.map_or("flowbench".to_owned(), |script| {
            format!("bash {}", summary::quoted(&script.display().to_string()))
        });
        let folder = self.files.folder.path().display().to_string();
        format!("{program} diagnose {}", summary::quoted(&folder))
    }
}
