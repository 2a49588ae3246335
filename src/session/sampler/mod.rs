//! Watches the machine while a run goes on: a thread that reads it ten times a second.
//!
//! ```text
//! thread: environment::host, engine::GpuWatch, clocks ─► Sample ─► Watched (taints, energy, series)
//! recorder: energy and taints of what it has measured, by time
//! ```

mod watched;

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::engine::GpuWatch;
use crate::environment::host::{HostWatch, Roots};
use crate::record::validity::ValidityRecord;
use crate::stopwatch::{self, Moment, Timer};

use watched::{Sample, Watched};

pub(super) use watched::Measured;

/// Between two readings.
const PERIOD: Duration = Duration::from_millis(100);

/// One of so many readings is in full: also what is only judged over a second, changes slowly, or takes longer
/// to read.
const IN_FULL: u32 = 10;

/// The thread may use this share of one processor. Where a reading takes longer than a tenth of a millisecond,
/// as with a slow driver or on a machine that is busy with other work, the next one comes later.
const LARGEST_SHARE: f64 = 0.001;

/// Processor time for the start of the thread, which does not count: files are opened, caches are cold.
const START_MS: f64 = 2.0;

/// But at least one in so many periods: once a second.
const MOST_PERIODS: u32 = 10;

/// How long a reading on request is waited for: the driver's library may hang.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// A request for a reading at once, which is acknowledged.
type Request = Sender<()>;

/// The thread, and what it has read.
pub(super) struct Sampler {
    watched: Arc<Mutex<Watched>>,
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Starts the thread. Times count from `origin`. `judges_others`: whether other processes of this machine
    /// disturb the run, and are no server that it measures. Without a thread, nothing is watched, and the record
    /// says why.
    pub(super) fn start(origin: Moment, judges_others: bool) -> Self {
        let watched = Arc::new(Mutex::new(Watched::new(judges_others)));
        let (requests, incoming) = channel();
        let shared = Arc::clone(&watched);
        let timer = origin.timer();
        let thread = std::thread::Builder::new().name("sampler".to_owned());
        let thread = thread.spawn(move || sample(&shared, &incoming, timer));
        let thread = match thread {
            Ok(thread) => Some(thread),
            Err(error) => {
                let reason = format!("failed to start the thread: {error}");
                lock(&watched).miss("thread", reason);
                None
            }
        };
        Self {
            watched,
            requests: Some(requests),
            thread,
        }
    }

    /// Reads the machine now, so that what was measured until now is covered. Takes about a millisecond, so it
    /// is done outside of what is timed.
    pub(super) fn refresh(&self) {
        let (done, answer) = channel();
        let sent = self.requests.as_ref().map(|requests| requests.send(done));
        if matches!(sent, Some(Ok(()))) {
            let _ = answer.recv_timeout(LONGEST_WAIT);
        }
    }

    /// What was found so far.
    pub(super) fn measured(&self) -> Measured {
        lock(&self.watched).measured()
    }

    /// The record; `with_series`: with the readings over time.
    pub(super) fn record(&self, with_series: bool) -> ValidityRecord {
        lock(&self.watched).record(with_series)
    }
}

impl Drop for Sampler {
    /// Ends the thread, unless it hangs: it may be in a library that the process is about to leave.
    fn drop(&mut self) {
        self.requests = None;
        let timer = Timer::start();
        while let Some(thread) = &self.thread
            && !thread.is_finished()
            && timer.elapsed() < LONGEST_WAIT
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn lock(watched: &Mutex<Watched>) -> std::sync::MutexGuard<'_, Watched> {
    watched.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread.
fn sample(watched: &Mutex<Watched>, requests: &Receiver<Request>, timer: Timer) {
    let mut host = HostWatch::open(&Roots::default(), std::process::id());
    let mut gpu = GpuWatch::default();
    let mut own_time = watched::ThreadTime::open();
    let begun = timer.elapsed();
    let mut next = begun;
    let mut count = 0u32;
    let mut waiting: Option<Request> = None;
    loop {
        let in_full = waiting.is_some() || count.is_multiple_of(IN_FULL);
        let at = timer.elapsed();
        let sample = Sample {
            ms: at.as_secs_f64() * 1e3,
            wall_ms: stopwatch::wall_ms(),
            gpu: gpu.read(in_full),
            processors_joules: host.joules(),
            host: in_full.then(|| host.read(at.as_secs_f64())),
        };
        let cpu_ms = own_time.as_mut().and_then(|time| time.ms());
        {
            let mut watched = lock(watched);
            watched.add(&sample);
            watched.cost(cpu_ms, (at - begun).as_secs_f64() * 1e3);
            if in_full {
                watched.miss_all(&host.missing);
            }
        }
        count = count.wrapping_add(1);
        if let Some(done) = waiting.take() {
            let _ = done.send(());
        }
        // A reading on request leaves the others at their times.
        if at >= next {
            let lived_ms = (at - begun).as_secs_f64() * 1e3;
            let periods = periods_until_next(cpu_ms.unwrap_or_default(), lived_ms);
            next = (next + PERIOD * periods).max(at);
        }
        match requests.recv_timeout(next.saturating_sub(timer.elapsed())) {
            Ok(request) => waiting = Some(request),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// How many periods to wait until the processor time is back within its share.
fn periods_until_next(cpu_ms: f64, lived_ms: f64) -> u32 {
    let surplus = cpu_ms - START_MS - LARGEST_SHARE * lived_ms;
    let period_ms = PERIOD.as_secs_f64() * 1e3;
    let periods = (surplus / (LARGEST_SHARE * period_ms)).ceil();
    periods.clamp(1.0, f64::from(MOST_PERIODS)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stopwatch::NoFence;

    #[test]
    fn an_expensive_reading_is_repeated_less_often() {
        assert_eq!(periods_until_next(0.0, 0.0), 1);
        assert_eq!(periods_until_next(2.0, 0.0), 1, "the start is free");
        assert_eq!(periods_until_next(11.9, 10_000.0), 1);
        assert_eq!(periods_until_next(12.35, 10_000.0), 4);
        assert_eq!(periods_until_next(500.0, 10_000.0), 10, "once a second");

        // Readings of 0.3 ms, for ten minutes.
        let (mut cpu_ms, mut lived_ms) = (1.0, 0.0);
        while lived_ms < 600_000.0 {
            cpu_ms += 0.3;
            lived_ms += 100.0 * f64::from(periods_until_next(cpu_ms, lived_ms));
        }
        assert!(cpu_ms / lived_ms < 1.01 * LARGEST_SHARE, "{cpu_ms}");
    }

    #[test]
    fn a_thread_reads_until_it_is_dropped() {
        let origin = Moment::now(&NoFence).expect("a clock");
        let sampler = Sampler::start(origin, true);
        sampler.refresh();
        let first = sampler.record(true);
        assert!(first.samples >= 1, "{first:?}");
        sampler.refresh();
        assert!(sampler.record(false).samples > first.samples);
        let watched = Arc::clone(&sampler.watched);
        drop(sampler);
        assert_eq!(Arc::strong_count(&watched), 1, "the thread has ended");
    }
}
