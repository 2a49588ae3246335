//! Expands a run's flows, and what the record and the terminal say about it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::config::RunConfig;
use crate::error::{Error, Exit, Result};
use crate::flow::{self, CacheState, Context, ExpandRequest, Expansion, Flow, Input, OnWait, Work};
use crate::profile::{self, Span};
use crate::record::{ExpansionRecord, PlannedStep, PrefixRecord};
use crate::report::{Console, timing};
use crate::stopwatch::{Moment, NoFence};
use crate::units::Millis;

/// A shorter wait for the flows' folder is not worth a line.
const NOTICE_AFTER: Duration = Duration::from_secs(1);

/// Expands the flows of a run, and prints what came of it.
pub(super) fn expand(
    config: &RunConfig,
    console: &mut Console,
    interrupted: &AtomicBool,
) -> Result<(Expansion, ExpansionRecord)> {
    let _span = profile::span(Span::FlowExpansion);
    let start = Moment::now(&NoFence)?;
    let expansion = {
        let wait = WaitNotice::new(console, interrupted);
        flow::expand(&request(config, &|waited| wait.tell(waited), &|| {
            wait.proceed()
        }))?
    };
    let end = Moment::now(&NoFence)?;
    let record = record(&expansion, end.since(start));
    print(&expansion, &record, console)?;
    Ok((expansion, record))
}

/// The request for a run's flows.
pub(super) fn request<'a>(
    config: &'a RunConfig,
    on_wait: OnWait<'a>,
    proceed: &'a dyn Fn() -> Result<()>,
) -> ExpandRequest<'a> {
    let rollouts = config.rollouts.as_ref();
    ExpandRequest {
        layout: &config.machine.layout,
        template: &config.machine.template,
        num_flows: config.job.num_flows,
        params: &config.job.params,
        input: rollouts.map(|rollouts| Input {
            path: &rollouts.files.input,
            limit: rollouts.rows.limit,
            repeats: rollouts.rows.repeats,
        }),
        use_cache: !config.job.engine_per_workflow,
        load: true,
        on_wait,
        proceed,
    }
}

/// Bytes of a template that a record keeps.
const KEPT_TEMPLATE: usize = 64 << 10;

/// The expansion's part of the record.
pub(crate) fn record(expansion: &Expansion, took: Millis) -> ExpansionRecord {
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
        template_text: Some(expansion.template_text())
            .filter(|text| text.len() <= KEPT_TEMPLATE)
            .map(str::to_owned),
        steps: expansion.flows.first().map(planned).unwrap_or_default(),
    }
}

/// The steps of a flow that generate; those of a loop once.
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
            // The decimal of the template, not the nearest f32 as f64.
            temperature: generate.temperature.to_string().parse().unwrap_or_default(),
            max_tokens: generate.max_tokens,
            judged: judged.contains(step.name()),
            appends: generate.context == Context::Append,
            prompt_bytes: 0,
            reusable_bytes: 0,
        });
    }
    steps
}

/// Prompts of more flows are not compared after a run: it takes about as long as expanding them.
const COMPARED_FLOWS: usize = 1000;

/// Records how much of the prompts is shared. Computed outside of every reported time.
pub(crate) fn record_prefix(expansion: &Expansion, record: &mut ExpansionRecord) {
    if expansion.num_flows > COMPARED_FLOWS {
        return;
    }
    // Not worth failing a run for; and the flows were rendered before.
    let Ok(share) = expansion.share() else {
        return;
    };
    record.prefix = Some(PrefixRecord {
        prompt_bytes: share.prompt_bytes,
        reusable_bytes: share.reusable_bytes,
        reusable_bytes_reordered: share.reusable_bytes_reordered,
    });
    for step in &mut record.steps {
        let of_step = |id: &str| id.split('.').next() == Some(step.step.as_str());
        for share in share.steps.iter().filter(|share| of_step(&share.id)) {
            step.prompt_bytes += share.prompt_bytes;
            step.reusable_bytes += share.reusable_bytes;
        }
    }
}

/// Prints whether the cache was used, what went in, and how long it took.
pub(crate) fn print(
    expansion: &Expansion,
    record: &ExpansionRecord,
    console: &mut Console,
) -> Result<()> {
    console.progress(&expansion.progress_line());
    console.result(&timing::input(record))?;
    console.result(&timing::flow_expansion(record))
}

/// Says once that another run has locked the flows' folder, and lets Ctrl-C end the wait.
pub(crate) struct WaitNotice<'a> {
    console: RefCell<&'a mut Console>,
    interrupted: &'a AtomicBool,
    told: Cell<bool>,
}

impl<'a> WaitNotice<'a> {
    pub(crate) fn new(console: &'a mut Console, interrupted: &'a AtomicBool) -> Self {
        Self {
            console: RefCell::new(console),
            interrupted,
            told: Cell::new(false),
        }
    }

    /// Lets Ctrl-C end an expansion between two flows.
    pub(crate) fn proceed(&self) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::new(
                Exit::Incomplete,
                "interrupted while the flows were expanded",
            )
            .hint("the next run expands them again"));
        }
        Ok(())
    }

    /// Called repeatedly during the wait.
    pub(crate) fn tell(&self, waited: Duration) -> Result<()> {
        if self.interrupted.load(Ordering::Relaxed) {
            return Err(Error::new(
                Exit::Incomplete,
                "interrupted while another run wrote the flows",
            ));
        }
        if waited >= NOTICE_AFTER && !self.told.replace(true) {
            self.console
                .borrow_mut()
                .progress("Waiting for another run that has the flows' folder");
        }
        Ok(())
    }
}
