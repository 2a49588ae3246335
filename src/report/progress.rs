//! What is drawn while a run goes on: on stderr where it is a terminal, gone when the work is done.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How far the flows have come, or what is waited for. Nothing is drawn when quiet or when stderr is
/// no terminal.
pub(super) struct Progress {
    shown: bool,
    bar: ProgressBar,
    flows: usize,
    flows_done: usize,
    tokens: usize,
}

impl Progress {
    pub(super) fn new(quiet: bool) -> Self {
        Self {
            shown: !quiet && std::io::stderr().is_terminal(),
            bar: ProgressBar::hidden(),
            flows: 0,
            flows_done: 0,
            tokens: 0,
        }
    }

    fn start(&mut self, total: u64, template: &str) {
        self.end();
        if !self.shown {
            return;
        }
        self.bar =
            ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(10));
        // A template that does not parse would leave the default look.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style.progress_chars("=> "));
        }
    }

    /// Something without a measure goes on.
    pub(super) fn wait(&mut self, what: &str) {
        self.start(1, "{spinner} {msg} {elapsed}");
        self.bar.set_message(what.to_owned());
        if self.shown {
            self.bar.enable_steady_tick(Duration::from_millis(200));
        }
    }

    /// Flows begin.
    pub(super) fn flows(&mut self, flows: usize, steps: usize) {
        (self.flows, self.flows_done, self.tokens) = (flows, 0, 0);
        self.start(
            steps as u64,
            "[{wide_bar}] {pos}/{len} steps, {msg}, {eta} left",
        );
        self.tell();
    }

    /// A step has ended, with so many tokens.
    pub(super) fn step(&mut self, tokens: usize) {
        self.tokens += tokens;
        self.bar.inc(1);
        self.tell();
    }

    /// A flow has ended.
    pub(super) fn flow(&mut self) {
        self.flows_done += 1;
        self.tell();
    }

    fn tell(&self) {
        if self.shown {
            let rate = self.tokens as f64 / self.bar.elapsed().as_secs_f64().max(1e-3);
            let (done, all) = (self.flows_done, self.flows);
            self.bar
                .set_message(format!("{done}/{all} flows, {rate:.0} tokens/s"));
        }
    }

    /// Takes what is drawn away.
    pub(super) fn end(&mut self) {
        self.bar.finish_and_clear();
        self.bar = ProgressBar::hidden();
    }

    /// Writes beside what is drawn: it is taken away before and drawn again after.
    pub(super) fn beside<T>(&self, write: impl FnOnce() -> T) -> T {
        if self.shown {
            self.bar.suspend(write)
        } else {
            write()
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
