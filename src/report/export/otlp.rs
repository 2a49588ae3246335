//! Spans as OTLP JSON (<https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding>) with the GenAI
//! semantic conventions (<https://github.com/open-telemetry/semantic-conventions-genai>). One line, as the
//! Collector's file receiver wants it.
//!
//! Each flow is a trace, so that 10,000 of them do not make one that no backend takes: a root span for the
//! workflow, and a span per step and sample with links to the steps that it needs. Prompts and answers stay
//! out, as the conventions have it by default.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::metrics;
use crate::error::{Error, Result};
use crate::hash::PartsHasher;
use crate::record::{PlannedStep, RunRecord, StepRecord, WorkflowRecord};
use crate::units::Millis;

/// `SPAN_KIND_INTERNAL` and `SPAN_KIND_CLIENT`.
const INTERNAL: u8 = 1;
const CLIENT: u8 = 3;

/// `STATUS_CODE_OK` and `STATUS_CODE_ERROR`.
const OK: u8 = 1;
const ERROR: u8 = 2;

/// OpenTelemetry's default limit on the links of a span.
const MOST_LINKS: usize = 128;

/// What tells the flows of a run apart: mode and round of `MODE=both`, number of the flow.
type FlowKey<'a> = (Option<&'a str>, Option<usize>, usize);

/// # Errors
/// Exit code 2 if the start time of the run, or of one of its shards, is not a time; 110 if a span cannot be
/// written as JSON, which would be a bug.
pub(super) fn text(run: &RunRecord, steps: &[StepRecord]) -> Result<String> {
    let mut flows: BTreeMap<FlowKey<'_>, (Option<&WorkflowRecord>, Vec<&StepRecord>)> =
        BTreeMap::new();
    for flow in &run.workflows {
        flows
            .entry((flow.mode.as_deref(), flow.round, flow.flow))
            .or_default()
            .0 = Some(flow);
    }
    for step in steps {
        let key = (step.mode.as_deref(), step.round, step.flow);
        flows.entry(key).or_default().1.push(step);
    }
    let clock = Clock::new(run)?;
    let spans = Spans {
        run,
        clock,
        client: engine(run, "kind") == "remote",
    };

    let written = |value: &Value| {
        serde_json::to_string(value)
            .map_err(|source| Error::output("failed to make JSON").caused_by(source))
    };
    let resource = written(&json!({"attributes": resource(run)}))?;
    let scope = written(&json!({"name": "flowbench", "version": run.environment.flowbench}))?;
    let mut out = format!(
        "{{\"resourceSpans\":[{{\"resource\":{resource},\"scopeSpans\":[{{\"scope\":{scope},\"spans\":["
    );
    let mut comma = "";
    for (key, (workflow, steps)) in flows {
        for span in spans.flow(key, workflow, &steps) {
            out.push_str(comma);
            out.push_str(&written(&span)?);
            comma = ",";
        }
    }
    out.push_str("]}]}]}\n");
    Ok(out)
}

fn engine<'a>(run: &'a RunRecord, name: &str) -> &'a str {
    run.engine
        .get(name)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn resource(run: &RunRecord) -> Vec<Value> {
    let mut all = Attributes::default();
    all.text("service.name", "flowbench");
    all.text("service.version", &run.environment.flowbench);
    all.text("service.instance.id", &run.run_id);
    all.text("os.description", &run.environment.os);
    all.text("flowbench.template", &run.expansion.template);
    all.text("flowbench.mode", metrics::mode(run));
    all.text("flowbench.backend", engine(run, "backend"));
    all.0
}

/// Turns times from the start of the benchmark into Unix times.
struct Clock {
    /// Starts of the shards of a merged run, each with its own clock.
    shards: Vec<(crate::record::shard::Shard, i128)>,
    /// Start of the run. The benchmark begins later by the start of the evaluation pool and the search for the
    /// model, so absolute times are early by that; differences are exact.
    start: i128,
}

impl Clock {
    fn new(run: &RunRecord) -> Result<Self> {
        let nanoseconds = |text: &str| match text.parse::<jiff::Timestamp>() {
            Ok(time) => Ok(time.as_nanosecond()),
            Err(source) => Err(Error::usage(format!(
                "run {}: `started_at` is not a time: {text:?}",
                run.run_id
            ))
            .hint("it is UTC as RFC 3339 has it, such as 2026-01-31T09:30:00Z")
            .caused_by(source)),
        };
        let shards = run.shards.iter();
        Ok(Self {
            shards: shards
                .map(|part| Ok((part.shard, nanoseconds(&part.started_at)?)))
                .collect::<Result<_>>()?,
            start: nanoseconds(&run.started_at)?,
        })
    }

    /// Nanoseconds since 1970 as a decimal string, as 64-bit integers are written.
    fn at(&self, flow: usize, time: Millis) -> String {
        let of_shard = self.shards.iter().find(|(shard, _)| shard.holds(flow));
        let start = of_shard.map_or(self.start, |(_, start)| *start);
        (start + (time.0 * 1e6).round() as i128).max(0).to_string()
    }
}

struct Spans<'a> {
    run: &'a RunRecord,
    clock: Clock,
    /// Whether the model is on a server.
    client: bool,
}

impl Spans<'_> {
    /// The workflow's span and those of its steps.
    fn flow(
        &self,
        key: FlowKey<'_>,
        workflow: Option<&WorkflowRecord>,
        steps: &[&StepRecord],
    ) -> Vec<Value> {
        let ids = Ids::new(&self.run.run_id, key);
        let mut by_name: HashMap<&str, Vec<&StepRecord>> = HashMap::new();
        for step in steps {
            by_name.entry(&step.step).or_default().push(step);
        }
        let mut spans = vec![self.root(&ids, key, workflow, steps)];
        spans.extend(steps.iter().map(|step| self.step(&ids, step, &by_name)));
        spans
    }

    fn root(
        &self,
        ids: &Ids,
        (mode, round, flow): FlowKey<'_>,
        workflow: Option<&WorkflowRecord>,
        steps: &[&StepRecord],
    ) -> Value {
        let template = &self.run.expansion.template;
        let first = steps
            .iter()
            .map(|step| step.start_ms.0)
            .fold(f64::INFINITY, f64::min);
        let last = steps.iter().map(|step| end(step).0).fold(0.0, f64::max);
        // A killed run has steps of workflows that it does not list.
        let (start, end) = match workflow {
            Some(workflow) => (workflow.start_ms, workflow.start_ms + workflow.workflow_ms),
            None => (Millis(first), Millis(last)),
        };
        let mut all = Attributes::default();
        all.text("gen_ai.operation.name", "invoke_workflow");
        all.text("gen_ai.workflow.name", template);
        all.number("flowbench.flow", flow);
        let row = workflow.map(|workflow| workflow.row.as_str());
        all.text(
            "flowbench.row",
            row.or(steps.first().map(|step| step.row.as_str()))
                .unwrap_or_default(),
        );
        all.text("flowbench.round_mode", mode.unwrap_or_default());
        all.numbers("flowbench.round", round);
        all.doubles(
            "flowbench.reward",
            workflow.and_then(|workflow| workflow.reward),
        );
        let error = workflow.and_then(|workflow| workflow.error.as_deref());
        if error.is_some() {
            all.text("error.type", "workflow_failed");
        }
        let status = match (workflow, error) {
            (_, Some(error)) => json!({"code": ERROR, "message": error}),
            (Some(_), None) => json!({"code": OK}),
            (None, None) => json!({}),
        };
        json!({
            "traceId": ids.trace,
            "spanId": ids.span("", None),
            "name": format!("invoke_workflow {template}"),
            "kind": INTERNAL,
            "startTimeUnixNano": self.clock.at(flow, start),
            "endTimeUnixNano": self.clock.at(flow, end),
            "attributes": all.0,
            "status": status,
        })
    }

    fn step(
        &self,
        ids: &Ids,
        step: &StepRecord,
        by_name: &HashMap<&str, Vec<&StepRecord>>,
    ) -> Value {
        let calls_model = step.asks_a_model();
        let operation = self.operation();
        let mut all = Attributes::default();
        let name = if calls_model {
            self.call(step, operation, &mut all);
            format!("{operation} {}", metrics::model(self.run))
        } else {
            format!("{} {}", step.kind(), step.step)
        };
        all.text("flowbench.step", &step.step);
        all.text("flowbench.kind", step.kind());
        all.numbers("flowbench.sample", step.sample);
        all.numbers("flowbench.generation", step.generation);
        for (name, value) in [
            ("flowbench.queue_ms", step.queue_ms),
            ("flowbench.latency_ms", Some(step.latency_ms)),
            ("flowbench.ttft_ms", step.ttft_ms),
            ("flowbench.tpot_ms", step.tpot_ms),
        ] {
            all.doubles(name, value.map(|ms| ms.0));
        }
        all.text("flowbench.out_hash", &step.out_hash);
        json!({
            "traceId": ids.trace,
            "spanId": ids.span(&step.step, step.sample),
            "parentSpanId": ids.span("", None),
            "name": name,
            "kind": if calls_model && self.client { CLIENT } else { INTERNAL },
            "startTimeUnixNano": self.clock.at(step.flow, step.start_ms),
            "endTimeUnixNano": self.clock.at(step.flow, end(step)),
            "attributes": all.0,
            "events": self.verdict(step),
            "links": links(ids, step, by_name),
            "status": {},
        })
    }

    /// The attributes of a call of the model.
    fn call(&self, step: &StepRecord, operation: &str, all: &mut Attributes) {
        all.text("gen_ai.operation.name", operation);
        // The conventions' name for any server with OpenAI's interface; a name of our own otherwise.
        let provider = if self.client { "openai" } else { "flowbench" };
        all.text("gen_ai.provider.name", provider);
        all.text("gen_ai.request.model", metrics::model(self.run));
        let name = step.step.split('.').next().unwrap_or_default();
        if let Some(planned) = self
            .run
            .expansion
            .steps
            .iter()
            .find(|planned| planned.step == name)
        {
            let PlannedStep {
                samples,
                temperature,
                max_tokens,
                ..
            } = planned;
            let limit = self.run.settings.get("max_tokens").and_then(Value::as_u64);
            all.numbers(
                "gen_ai.request.max_tokens",
                limit.or(u64::try_from(*max_tokens).ok()),
            );
            all.doubles("gen_ai.request.temperature", Some(*temperature));
            if *samples > 1 {
                all.number("gen_ai.request.choice.count", *samples);
            }
        }
        let seed = self.run.settings.get("seed").and_then(Value::as_u64);
        all.numbers("gen_ai.request.seed", seed);
        all.texts("gen_ai.response.finish_reasons", &[&step.finish]);
        all.number("gen_ai.usage.input_tokens", step.tokens.prompt);
        all.number("gen_ai.usage.output_tokens", step.tokens.decode);
        all.number("gen_ai.usage.cache_read.input_tokens", step.tokens.reused);
        all.numbers(
            "gen_ai.usage.reasoning.output_tokens",
            step.reasoning_tokens,
        );
        let first = step.ttft_ms.map(Millis::seconds);
        all.doubles("gen_ai.response.time_to_first_chunk", first);
    }

    fn operation(&self) -> &'static str {
        let api = self
            .run
            .settings
            .get("endpoint_api")
            .and_then(Value::as_str);
        match api {
            Some("completions") if self.client => "text_completion",
            _ => "chat",
        }
    }

    /// The event of a judged step.
    fn verdict(&self, step: &StepRecord) -> Vec<Value> {
        let Some(outcome) = &step.outcome else {
            return Vec::new();
        };
        let mut all = Attributes::default();
        all.text("gen_ai.evaluation.name", &step.step);
        all.text("gen_ai.evaluation.score.label", outcome);
        all.doubles("gen_ai.evaluation.score.value", step.score);
        all.text(
            "gen_ai.evaluation.explanation",
            step.detail.as_deref().unwrap_or_default(),
        );
        vec![json!({
            "timeUnixNano": self.clock.at(step.flow, end(step)),
            "name": "gen_ai.evaluation.result",
            "attributes": all.0,
        })]
    }
}

fn end(step: &StepRecord) -> Millis {
    step.start_ms + step.latency_ms
}

/// Links to the steps that `step` needs: to the sample of its own number if there is one, otherwise to all.
fn links(ids: &Ids, step: &StepRecord, by_name: &HashMap<&str, Vec<&StepRecord>>) -> Vec<Value> {
    let mut links = Vec::new();
    for need in &step.needs {
        let all = by_name.get(need.as_str()).map_or(&[][..], Vec::as_slice);
        let own = all
            .iter()
            .find(|other| step.sample.is_some() && other.sample == step.sample);
        let needed = own.map_or(all, std::slice::from_ref);
        links.extend(needed.iter().map(
            |other| json!({"traceId": ids.trace, "spanId": ids.span(&other.step, other.sample)}),
        ));
    }
    links.truncate(MOST_LINKS);
    links
}

/// Ids of a flow's trace and spans, which are the same in every export of the run.
struct Ids {
    /// 16 bytes in hex.
    trace: String,
}

impl Ids {
    fn new(run_id: &str, (mode, round, flow): FlowKey<'_>) -> Self {
        let parts = [
            mode.unwrap_or_default(),
            &round.unwrap_or(0).to_string(),
            &flow.to_string(),
        ];
        Self {
            trace: digest(run_id, &parts, 32),
        }
    }

    /// 8 bytes in hex.
    fn span(&self, step: &str, sample: Option<usize>) -> String {
        digest(&self.trace, &[step, &sample.unwrap_or(0).to_string()], 16)
    }
}

fn digest(of: &str, parts: &[&str], digits: usize) -> String {
    let mut hasher = PartsHasher::default();
    hasher.part(of.as_bytes());
    parts.iter().for_each(|part| hasher.part(part.as_bytes()));
    let mut text = hasher.finish();
    text.truncate(digits);
    text
}

/// Attributes as OTLP JSON has them. Unknown and empty values are left out.
#[derive(Default)]
struct Attributes(Vec<Value>);

impl Attributes {
    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            self.0
                .push(json!({"key": key, "value": {"stringValue": value}}));
        }
    }

    fn texts(&mut self, key: &str, values: &[&str]) {
        let values: Vec<Value> = values
            .iter()
            .map(|value| json!({"stringValue": value}))
            .collect();
        self.0
            .push(json!({"key": key, "value": {"arrayValue": {"values": values}}}));
    }

    fn number(&mut self, key: &str, value: impl ToString) {
        self.0
            .push(json!({"key": key, "value": {"intValue": value.to_string()}}));
    }

    fn numbers(&mut self, key: &str, value: Option<impl ToString>) {
        if let Some(value) = value {
            self.number(key, value);
        }
    }

    fn doubles(&mut self, key: &str, value: Option<f64>) {
        if let Some(value) = value.filter(|value| value.is_finite()) {
            self.0
                .push(json!({"key": key, "value": {"doubleValue": value}}));
        }
    }
}
