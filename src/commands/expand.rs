//! `flowbench expand`: the expansion alone, or with `--check` its verification.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::cli::ExpandArgs;
use crate::error::{Error, Exit, Result};
use crate::flow::{self, CacheState, ExpandRequest, Expansion, Flow, Work};
use crate::record::{ExpansionRecord, PlannedStep, PrefixRecord};
use crate::report::{Console, timing};
use crate::stopwatch::{Moment, NoFence};
use crate::units::{Millis, plural};

/// How long a wait may be before it is worth a line.
const PATIENCE: Duration = Duration::from_secs(1);

/// Expands, or verifies, and prints what came of it.
///
/// # Errors
/// Exit code 2 for a template, suite or fixture that is wrong, 110 where `flows/` cannot be
/// written.
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
    let record = record(&expansion, end.since(start));
    print(&expansion, &record, console)?;
    console.result(&expansion.share()?.to_string())?;
    Ok(Exit::Done)
}

/// What `--check` found.
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

/// The expansion as the record keeps it.
pub(super) fn record(expansion: &Expansion, took: Millis) -> ExpansionRecord {
    ExpansionRecord {
        template: expansion.template.clone(),
        fixture_hash: expansion.fixture_hash.clone(),
        template_hash: expansion.template_hash.clone(),
        fixture_bytes: expansion.fixture.bytes,
        fixture_files: expansion.fixture.files,
        num_flows: expansion.num_flows,
        cached: expansion.state == CacheState::Hit,
        miss: match &expansion.state {
            CacheState::Hit => None,
            CacheState::Miss(reason) => Some(reason.to_string()),
        },
        flow_expansion_ms: took,
        prefix: None,
        steps: expansion.flows.first().map(planned).unwrap_or_default(),
    }
}

/// What the steps of a flow ask the model for; those of a loop once.
fn planned(flow: &Flow) -> Vec<PlannedStep> {
    let name = |id: &str| id.split('.').next().unwrap_or(id).to_owned();
    let judging = flow.steps.iter().flat_map(|step| step.work.of());
    let judged: BTreeSet<String> = judging.map(|id| name(id)).collect();
    let mut steps: Vec<PlannedStep> = Vec::new();
    let mut seen = BTreeSet::new();
    for step in &flow.steps {
        let Work::Generate(generate) = &step.work else {
            continue;
        };
        if !seen.insert(step.name()) {
            continue;
        }
        steps.push(PlannedStep {
            step: step.name().to_owned(),
            samples: generate.samples,
            // The decimal that the template has, and not the nearest f32.
            temperature: generate.temperature.to_string().parse().unwrap_or_default(),
            max_tokens: generate.max_tokens,
            judged: judged.contains(step.name()),
        });
    }
    steps
}

/// Most flows whose prompts are compared after a run: it takes about as long as to expand them.
const COMPARED_FLOWS: usize = 1000;

/// How much of the prompts is shared, for the record. It is taken outside of any time that is
/// reported.
pub(super) fn prefix(expansion: &Expansion) -> Option<PrefixRecord> {
    if expansion.num_flows > COMPARED_FLOWS {
        return None;
    }
    // It is no reason for a run to fail: the flows were rendered before.
    let share = expansion.share().ok()?;
    Some(PrefixRecord {
        prompt_bytes: share.prompt_bytes,
        reusable_bytes: share.reusable_bytes,
        reusable_bytes_reordered: share.reusable_bytes_reordered,
    })
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

/// Says once that another run has the flows' folder, and lets Ctrl-C end the wait.
pub(super) struct WaitNotice<'a> {
    console: RefCell<&'a mut Console>,
    interrupted: &'a AtomicBool,
    told: Cell<bool>,
}

impl<'a> WaitNotice<'a> {
    pub(super) fn new(console: &'a mut Console, interrupted: &'a AtomicBool) -> Self {
        Self {
            console: RefCell::new(console),
            interrupted,
            told: Cell::new(false),
        }
    }

    /// Lets Ctrl-C end an expansion between two flows.
    pub(super) fn proceed(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::new(
                Exit::Incomplete,
                "interrupted while the flows were expanded",
            )
            .hint("the next run expands them anew"));
        }
        Ok(())
    }

    /// Called again and again while the wait lasts.
    pub(super) fn tell(&self, waited: Duration) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::new(
                Exit::Incomplete,
                "interrupted while another run wrote the flows",
            ));
        }
        if waited >= PATIENCE && !self.told.replace(true) {
            self.console
                .borrow_mut()
                .progress("Waiting for another run that has the flows' folder");
        }
        Ok(())
    }
}
