//! What the card did between two readings.

use std::collections::BTreeSet;

use super::{Reading, card, processes, read};
use crate::record::gpu::{GpuCard, GpuRecord, Missing};
use crate::stopwatch::Timer;

/// A first reading to compare a later one with.
#[derive(Debug)]
pub struct GpuMeter {
    card: GpuCard,
    /// Why parts of `card` are unknown.
    missing: Missing,
    start: Reading,
    timer: Timer,
}

impl GpuMeter {
    /// Reads the card that this process uses; `None` without one.
    pub fn start() -> Option<Self> {
        let mut missing = Missing::new();
        let start = read()?;
        let timer = Timer::start();
        Some(Self {
            card: card::describe(&mut missing),
            missing,
            start,
            timer,
        })
    }

    #[cfg(test)]
    pub(super) fn of(start: Reading) -> Self {
        Self {
            card: GpuCard::default(),
            missing: Missing::new(),
            start,
            timer: Timer::start(),
        }
    }

    /// The record of a run in progress.
    pub fn begun(&self) -> GpuRecord {
        self.record(None)
    }

    /// Reads the card again.
    pub fn ended(&self) -> GpuRecord {
        let seconds = self.timer.elapsed().as_secs_f64();
        self.record(read().map(|end| (end, seconds)))
    }

    /// `end`: the last reading, and the seconds since the first.
    pub(super) fn record(&self, end: Option<(Reading, f64)>) -> GpuRecord {
        let mut record = GpuRecord {
            card: self.card.clone(),
            start: self.start.values.clone(),
            missing: self.missing.clone(),
            ..GpuRecord::default()
        };
        let readings = [Some(&self.start), end.as_ref().map(|(end, _)| end)];
        for reading in readings.into_iter().flatten() {
            let reasons = reading.values.throttle.iter().flatten();
            let throttle: BTreeSet<&String> = record.throttle.iter().chain(reasons).collect();
            record.throttle = throttle.into_iter().cloned().collect();
            let others = reading.values.other_processes.iter().flatten();
            record.other_processes =
                processes::united(record.other_processes.iter().chain(others).cloned());
        }
        let Some((end, seconds)) = end else {
            merge(
                &mut record.missing,
                &self.start.missing,
                &self.start.missing,
            );
            return record;
        };
        merge(&mut record.missing, &self.start.missing, &end.missing);
        match joules(&self.start, &end) {
            Ok(joules) => record.energy_joules = Some(joules),
            Err(reason) if record.missing.contains_key("nvml") => drop(reason),
            Err(reason) => drop(record.missing.insert("energy_joules".to_owned(), reason)),
        }
        record.seconds = Some(seconds);
        record.end = Some(end.values);
        record
    }
}

/// Adds what is missing in the readings. What only one of them lacks is said so.
fn merge(all: &mut Missing, start: &Missing, end: &Missing) {
    for (field, reason) in start {
        let reason = match end.contains_key(field) {
            true => reason.clone(),
            false => format!("in the first reading: {reason}"),
        };
        all.entry(field.clone()).or_insert(reason);
    }
    for (field, reason) in end.iter().filter(|(field, _)| !start.contains_key(*field)) {
        let reason = format!("in the last reading: {reason}");
        all.entry(field.clone()).or_insert(reason);
    }
}

/// Energy between the readings.
///
/// # Errors
/// Why it is unknown.
fn joules(start: &Reading, end: &Reading) -> Result<f64, String> {
    let counter = |reading: &Reading| {
        let field = "energy_millijoules";
        let reason = || reading.missing.get(field).cloned().unwrap_or_default();
        reading.values.energy_millijoules.ok_or_else(reason)
    };
    let (from, to) = (counter(start)?, counter(end)?);
    match to.checked_sub(from) {
        Some(millijoules) => Ok(millijoules as f64 / 1000.0),
        None => Err(format!(
            "the counter went back from {from} to {to} mJ: the driver was loaded again"
        )),
    }
}
