//! The bars of a fetch: on stderr where it is a terminal, gone when their work is done.
//!
//! These do not go through the console, which lies above the engine, and need not: the thread that
//! fetches is the one that prints, it says nothing while one of them is drawn, and the console has no
//! bar of its own at that time.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::{bars_are_hidden, visible_line};

/// A bar over so many bytes. It draws nothing with `QUIET` or when stderr is not a terminal.
pub(super) fn bytes(what: &str, total: u64) -> ProgressBar {
    let target = if bars_are_hidden() {
        ProgressDrawTarget::hidden()
    } else {
        ProgressDrawTarget::stderr()
    };
    let bar = ProgressBar::with_draw_target(Some(total), target)
        .with_message(visible_line(what).into_owned());
    // A template that does not parse would leave the default look.
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ({eta})",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
