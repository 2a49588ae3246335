//! Progress bars of a download: on stderr if it is a terminal, cleared when done.
//!
//! They bypass the console, which belongs to a higher layer. That is safe: the downloading thread
//! is also the one that prints, it prints nothing while a bar is drawn, and the console shows no
//! bar at that time.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::terminal::visible_line;

/// A bar over `total` bytes. Draws nothing if `quiet` is set or stderr is not a terminal.
pub(super) fn bytes(quiet: bool, what: &str, total: u64) -> ProgressBar {
    let target = if quiet {
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
