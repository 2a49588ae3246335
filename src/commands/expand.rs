//! `flowbench expand`: the expansion alone, or with `--check` its verification.

use crate::cli::ExpandArgs;
use crate::error::{Exit, Result};
use crate::flow::{self, ExpandRequest, Expansion};
use crate::record::ExpansionRecord;
use crate::report::{Console, timing};
use crate::stopwatch::{Moment, NoFence};
use crate::units::Millis;

/// Expands, or verifies, and prints what came of it.
///
/// # Errors
/// Exit code 2 for a template, suite or fixture that is wrong, 110 where `flows/` cannot be
/// written.
pub(crate) fn run(arguments: &ExpandArgs, console: &mut Console) -> Result<Exit> {
    let layout = arguments.layout();
    let request = ExpandRequest {
        layout: &layout,
        template: &arguments.flows.template,
        num_flows: arguments.flows.num_flows,
        use_cache: true,
        load: false,
    };
    let start = Moment::now(&NoFence)?;
    if arguments.check {
        let state = flow::check(&request)?;
        console.result(&state.check_line())?;
        return Ok(if state.is_hit() { Exit::Done } else { Exit::Gate });
    }
    let expansion = flow::expand(&request)?;
    let end = Moment::now(&NoFence)?;
    let record = record(&expansion, arguments.flows.num_flows, end.since(start));
    print(&expansion, &record, console)?;
    console.result(&expansion.share()?.to_string())?;
    Ok(Exit::Done)
}

/// The expansion as the record keeps it.
pub(super) fn record(expansion: &Expansion, num_flows: usize, took: Millis) -> ExpansionRecord {
    ExpansionRecord {
        template: expansion.template.clone(),
        fixture_hash: expansion.fixture_hash.clone(),
        template_hash: expansion.template_hash.clone(),
        fixture_bytes: expansion.fixture.bytes,
        fixture_files: expansion.fixture.files,
        num_flows,
        cached: expansion.state.is_hit(),
        miss: expansion.state.miss().map(ToString::to_string),
        flow_expansion_ms: took,
    }
}

/// The lines of an expansion: how it went, what went in, and how long it took.
pub(super) fn print(
    expansion: &Expansion,
    record: &ExpansionRecord,
    console: &mut Console,
) -> Result<()> {
    console.progress(&expansion.progress_line());
    console.result(&timing::input(record))?;
    console.result(&timing::flow_expansion(record))
}
