//! Progress bars of a download: on stderr if it is a terminal, cleared when done.
//!
//! They bypass the console, which belongs to a higher layer. That is safe: the downloading thread
//! is also the one that prints, it prints nothing while a bar is drawn, and the console shows no
//! bar at that time.

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
    // If the template does not parse, the default style stays.
    if let Ok(style) = ProgressStyle::with_template(
        "{msg} [{wide_bar}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} ({eta})",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar
}
