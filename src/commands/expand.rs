//! `flowbench expand`: expands without running, verifies with `--check`, or compares with `--cost`.

use std::sync::atomic::AtomicBool;

use crate::cli::ExpandArgs;
use crate::error::{Exit, Result};
use crate::flow::{self, CacheState, ExpandRequest, Expansion, Prompts};
use crate::report::Console;
use crate::report::cost::{self, Rates};
use crate::results::SavedRun;
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
    let (before, expansion, took) = {
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
        let checked = flow::check(&request)?;
        // The flows on disk are compared before they are replaced.
        let is_compared = arguments.cost || (!arguments.check && checked.state != CacheState::Hit);
        let before = match is_compared {
            true => Prompts::on_disk(&request, &checked.template)?,
            false => None,
        };
        if arguments.check || arguments.cost {
            (before, checked, Moment::now(&NoFence)?.since(start))
        } else {
            let start = Moment::now(&NoFence)?;
            let expansion = flow::expand(&request)?;
            (before, expansion, Moment::now(&NoFence)?.since(start))
        }
    };
    if arguments.check {
        return verdict(&expansion, console);
    }
    if arguments.cost {
        return costs(before.as_ref(), &expansion.prompts()?, arguments, console);
    }
    let record = expansion::record(&expansion, took);
    expansion::print(&expansion, &record, console)?;
    let prompts = expansion.prompts()?;
    console.result(&prompts.share.to_string())?;
    if before.is_some() {
        console.result(&cost::total(before.as_ref(), &prompts))?;
    }
    Ok(Exit::Done)
}

/// Prints what the prompts cost by the rates of the latest run. That there is no run is no error: the bytes are
/// known without one.
fn costs(
    before: Option<&Prompts>,
    after: &Prompts,
    arguments: &ExpandArgs,
    console: &mut Console,
) -> Result<Exit> {
    let saved = SavedRun::read(None, &arguments.results.folder());
    let rates = match &saved {
        Ok(saved) => Rates::of(&saved.record, &saved.steps),
        Err(error) => Err(format!("no rates: {}", error.chain())),
    };
    for line in cost::lines(before, after, rates.as_ref().map_err(String::as_str)) {
        console.result(&line)?;
    }
    Ok(Exit::Done)
}

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
