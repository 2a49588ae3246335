//! The report's Markdown, cut to the limit of GitHub's job summaries.

use super::Run;
use crate::error::{Error, Result};
use crate::report::page;
use crate::units::plural;

/// Bytes of the summary of a step. GitHub discards a longer one as a whole:
/// `$GITHUB_STEP_SUMMARY upload aborted, supports content up to a size of 1024k`.
pub const LIMIT: usize = 1 << 20;

/// Room for the note.
const NOTE: usize = 200;

/// The Markdown in `room` bytes.
///
/// # Errors
/// Exit code 110 if not even the note fits.
pub(super) fn text(run: Run<'_>, room: usize) -> Result<String> {
    let page = page::markdown(run.record, run.steps, run.evolutions);
    cut(&page, room).ok_or_else(|| {
        Error::output(format!(
            "the step's summary has {room} of {LIMIT} bytes left"
        ))
        .hint("export in a step of its own: the limit is per step")
    })
}

/// `page` with a newline at its end, or as many of its lines as fit with a note that says how many are
/// missing; `None` if the note does not fit.
fn cut(page: &str, room: usize) -> Option<String> {
    let page = page.trim_end();
    if page.len() < room {
        return Some(format!("{page}\n"));
    }
    let within = page.as_bytes().get(..room.checked_sub(NOTE)?)?;
    let end = within.iter().rposition(|byte| *byte == b'\n')?;
    let (kept, rest) = page.split_at(end);
    let lines = |text: &str| text.matches('\n').count();
    let (missing, all) = (lines(rest), lines(page) + 1);
    Some(format!(
        "{kept}\n\n**Cut at GitHub's limit of 1 MiB per step: {missing} of {} are missing.** \
         `flowbench report -o md` prints them all.\n",
        plural(all, "line")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_page_that_fits_is_not_changed() {
        assert_eq!(cut("a\nb\n", 4).as_deref(), Some("a\nb\n"));
        assert_eq!(cut("a\nb", LIMIT).as_deref(), Some("a\nb\n"));
        assert_eq!(cut("a\nb\n", 3), None);
    }

    proptest! {
        #[test]
        fn a_cut_page_ends_at_a_line_and_counts_what_is_missing(
            lines in proptest::collection::vec("[aä🧪]{0,40}", 50..200),
            room in 250usize..2000,
        ) {
            let page = format!("{}\nlast", lines.join("\n"));
            let Some(text) = cut(&page, room) else { return Ok(()) };
            prop_assert!(text.len() <= room);
            if page.len() >= room {
                let (kept, note) = text.split_once("\n\n**Cut").expect("a note");
                let line = format!("{kept}\n");
                prop_assert!(page.starts_with(&line));
                let lines = |text: &str| text.split('\n').count();
                let (missing, of) = (lines(&page) - lines(kept), lines(&page));
                prop_assert!(note.contains(&format!(": {missing} of {of} lines")), "{note}");
            }
        }
    }
}
