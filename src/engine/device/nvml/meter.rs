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
        let last = end.as_ref().map_or(&self.start, |(end, _)| end);
        let readings = [&self.start.values, &last.values];
        let throttle = readings
            .iter()
            .flat_map(|reading| reading.throttle.iter().flatten());
        let throttle: BTreeSet<&String> = throttle.collect();
        let others = readings
            .iter()
            .flat_map(|reading| reading.other_processes.iter().flatten());
        let mut missing = self.missing.clone();
        merge(&mut missing, &self.start.missing, &last.missing);
        let mut record = GpuRecord {
            card: self.card.clone(),
            start: self.start.values.clone(),
            throttle: throttle.into_iter().cloned().collect(),
            other_processes: processes::united(others.cloned()),
            missing,
            ..GpuRecord::default()
        };
        if let Some((end, seconds)) = end {
            match joules(&self.start, &end) {
                Ok(joules) => record.energy_joules = Some(joules),
                // Without the library, its reason is enough.
                Err(_) if record.missing.contains_key("nvml") => {}
                Err(reason) => drop(record.missing.insert("energy_joules".to_owned(), reason)),
            }
            record.seconds = Some(seconds);
            record.end = Some(end.values);
        }
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
