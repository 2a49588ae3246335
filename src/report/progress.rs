//! Progress bars and spinners on stderr, if it is a terminal. They are removed when the work is
//! done or interrupted.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle, WeakProgressBar};

use crate::stopwatch::Timer;

/// The bar on screen, for [`clear`].
static DRAWN: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Once set, nothing is drawn any more.
static CLEARED: AtomicBool = AtomicBool::new(false);

/// How long an interrupt waits for the terminal.
const PATIENCE: Duration = Duration::from_millis(200);

/// Removes the bar, from any thread, and disables drawing for the rest of the process: an interrupt
/// must not leave half a bar on the terminal. A terminal or pipe that accepts no more text blocks
/// the bar, so the wait is bounded.
pub(crate) fn clear() {
    CLEARED.store(true, Ordering::Relaxed);
    let drawn = DRAWN.lock().unwrap_or_else(PoisonError::into_inner).take();
    let Some(bar) = drawn.and_then(|bar| bar.upgrade()) else {
        return;
    };
    let (done, wait) = channel();
    let clearing = thread::Builder::new().spawn(move || {
        bar.finish_and_clear();
        // The receiver is gone if clearing took too long.
        let _ = done.send(());
    });
    if clearing.is_ok() {
        let _ = wait.recv_timeout(PATIENCE);
    }
}

/// Progress of the flows, or a spinner while waiting. Nothing is drawn if quiet or if stderr is not
/// a terminal.
pub(super) struct Progress {
    shown: bool,
    bar: ProgressBar,
    job: Option<FlowProgress>,
}

/// Total and finished work of a run: the rounds of `MODE=both` are one job.
struct FlowProgress {
    flows: usize,
    flows_done: usize,
    steps: usize,
    steps_done: usize,
    tokens: usize,
    since: Timer,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            shown: !quiet && std::io::stderr().is_terminal(),
            bar: ProgressBar::hidden(),
            job: None,
        }
    }

    fn start(&mut self, total: u64, template: &str) {
        self.end();
        if !self.shown || CLEARED.load(Ordering::Relaxed) {
            return;
        }
        self.bar =
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        // An invalid template would leave the default style.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
        let mut drawn = DRAWN.lock().unwrap_or_else(PoisonError::into_inner);
        *drawn = Some(self.bar.downgrade());
    }

    /// Shows a spinner for work of unknown length.
    pub(super) fn wait(&mut self, what: &str) {
        self.start(1, "{spinner} {msg} {elapsed}");
        self.bar.set_message(what.to_owned());
        if self.shown {
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    /// Sets the totals of the whole run.
    pub(super) fn plan(&mut self, flows: usize, steps: usize) {
        self.job = Some(FlowProgress {
            flows,
            flows_done: 0,
            steps,
            steps_done: 0,
            tokens: 0,
            since: Timer::start(),
        });
    }

    /// Shows the bar when flows start, or resume after a wait.
    pub(super) fn flows(&mut self) {
        let Some(steps) = self.job.as_ref().map(|job| job.steps) else {
            return;
        };
        // Narrower than the terminal, so that the echoed `^C` lands on the same line and is cleared
        // with it.
        self.start(steps as u64, "[{bar:16}] {pos}/{len} steps, {msg}");
        self.tell();
    }

    /// Records a finished step and its generated tokens.
    pub(super) fn step(&mut self, tokens: usize) {
        if let Some(job) = &mut self.job {
            job.tokens += tokens;
            job.steps_done += 1;
        }
        self.tell();
    }

    pub(super) fn flow(&mut self) {
        if let Some(job) = &mut self.job {
            job.flows_done += 1;
        }
        self.tell();
    }

    fn tell(&self) {
        if let Some(job) = self.job.as_ref().filter(|_| self.shown) {
            self.bar.set_message(job.message());
            self.bar.set_position(job.steps_done as u64);
        }
    }

    /// Removes the bar.
    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }

    /// Runs `write` with the bar hidden, and redraws it afterwards.
    pub(super) fn beside<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.shown {
            self.bar.suspend(write)
        } else {
            write()
        }
    }
}

impl FlowProgress {
    fn message(&self) -> String {
        let elapsed = self.since.elapsed();
        let rate = self.tokens as f64 / elapsed.as_secs_f64().max(1e-3);
        let left = self.steps.saturating_sub(self.steps_done);
        let left = match self.steps_done {
            0 => String::new(),
            done => {
                let left = elapsed.mul_f64(left as f64 / done as f64);
                format!(", {:#} left", HumanDuration(left))
            }
        };
        let (done, all) = (self.flows_done, self.flows);
        format!("{done}/{all} flows, {rate:.0} tokens/s{left}")
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_accumulates_over_rounds() {
        let mut progress = Progress::new(true);
        progress.plan(4, 12);
        for _round in 0..2 {
            progress.wait("Loading");
            progress.flows();
            for _step in 0..3 {
                progress.step(10);
            }
            progress.flow();
            progress.end();
        }
        let job = progress.job.as_ref().expect("planned");
        assert_eq!((job.flows_done, job.steps_done, job.tokens), (2, 6, 60));
        assert!(
            job.message().starts_with("2/4 flows, "),
            "{}",
            job.message()
        );
        assert!(job.message().ends_with(" left"), "{}", job.message());
    }
}
