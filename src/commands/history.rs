//! `flowbench history`: a metric over the runs of a job.

use crate::cli::HistoryArgs;
use crate::config::HistoryFormat;
use crate::error::{Exit, Result};
use crate::report::{self, Console};
use crate::results::{self, runs};
use crate::session::{self, TrendRequest};
use crate::units::plural;

/// # Errors
/// Exit code 2 if the history has no such run; 110 if something cannot be written or removed.
pub(super) fn run(arguments: &HistoryArgs, console: &mut Console) -> Result<Exit> {
    let out = arguments.results.folder();
    let request = TrendRequest {
        out: &out,
        metric: &arguments.metric,
        last: arguments.last,
        run: arguments.run.as_deref(),
    };
    let trend = session::trend(&request, console)?;
    match arguments.output {
        HistoryFormat::Text => {
            for line in report::history::lines(&trend) {
                console.result(&line)?;
            }
        }
        HistoryFormat::Json => {
            console.data(&serde_json::to_string_pretty(&trend).unwrap_or_default())?;
        }
        HistoryFormat::Html => {
            let file = out.join("history.html");
            results::replace(&file, report::history::html(&trend)?.as_bytes())?;
            console.result(&file.display().to_string())?;
        }
    }
    if let Some(keep) = arguments.prune {
        let removed = runs::prune(&out, keep)?;
        console.progress(&format!("Removed {}", plural(removed, "run folder")));
    }
    Ok(Exit::Done)
}
