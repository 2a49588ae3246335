//! `flowbench expand`: expands without running, or verifies with `--check`.

use std::sync::atomic::AtomicBool;

use crate::cli::ExpandArgs;
use crate::error::{Exit, Result};
use crate::flow::{self, CacheState, ExpandRequest, Expansion};
use crate::report::Console;
use crate::session::expansion::{self, WaitNotice};
use crate::stopwatch::{Moment, NoFence};
use crate::units::plural;

/// # Errors
/// Exit code 2 for an invalid template, suite or fixture, 110 if `flows/` cannot be written.
pub(crate) fn run(
    arguments: &ExpandArgs,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<Exit> {
    let layout = arguments.layout();
    let start = Moment::now(&NoFence)?;
    let expansion = {
        let wait = WaitNotice::new(console, interrupted);
        let request = ExpandRequest {
            layout: &layout,
            template: &arguments.flows.template,
            num_flows: arguments.flows.num_flows,
            params: &arguments.set,
            input: None,
            use_cache: true,
            load: false,
            on_wait: &|waited| wait.tell(waited),
            proceed: &|| wait.proceed(),
        };
        if arguments.check {
            flow::check(&request)?
        } else {
            flow::expand(&request)?
        }
    };
    let end = Moment::now(&NoFence)?;
    if arguments.check {
        return verdict(&expansion, console);
    }
    let record = expansion::record(&expansion, end.since(start));
    expansion::print(&expansion, &record, console)?;
    console.result(&expansion.share()?.to_string())?;
    Ok(Exit::Done)
}

/// Prints the result of `--check`.
fn verdict(expansion: &Expansion, console: &mut Console) -> Result<Exit> {
    match &expansion.state {
        CacheState::Hit => {
            let (flows, are) = (
                plural(expansion.num_flows, "flow"),
                match expansion.num_flows {
                    1 => "is as it",
                    _ => "are as they",
                },
            );
            console.result(&format!("{flows} {are} should be"))?;
            Ok(Exit::Done)
        }
        CacheState::Miss(reason) => {
            let detail = reason.detail().map(|text| format!(" ({text})"));
            console.result(&format!(
                "the flows would be written anew: {reason}{}",
                detail.unwrap_or_default()
            ))?;
            Ok(Exit::Gate)
        }
    }
}
