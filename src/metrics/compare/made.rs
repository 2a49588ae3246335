//! Made-up runs for tests.

use crate::record::compare::{MeasuredRun, MeasuredStep};
use crate::record::metrics::CriticalStep;
use crate::record::{
    Environment, ExpansionRecord, RECORD_SCHEMA, RunRecord, Status, TokenCounts, Totals,
    WorkflowRecord,
};
use crate::units::Millis;

/// The steps of each flow, one after the other.
pub(crate) const STEPS: [&str; 2] = ["planner", "executor"];

/// A complete run of `flows` flows: `planner`, then `executor`, each 10 ms of queue, 40 ms of prefill for 100
/// tokens and 50 ms of decoding for 20 tokens; all times of a step are multiplied by `factor(flow, step)`,
/// both from 0.
pub(crate) fn run(id: &str, flows: usize, factor: impl Fn(usize, usize) -> f64) -> MeasuredRun {
    let mut steps = Vec::new();
    let mut workflows = Vec::new();
    for flow in 0..flows {
        let mut start = 0.0;
        let mut path = Vec::new();
        for (index, step) in STEPS.into_iter().enumerate() {
            let factor = factor(flow, index);
            steps.push(MeasuredStep {
                flow: flow + 1,
                step: step.to_owned(),
                start_ms: Millis(start),
                queue_ms: Some(Millis(10.0 * factor)),
                ttft_ms: Some(Millis(50.0 * factor)),
                tpot_ms: Some(Millis(50.0 * factor / 19.0)),
                latency_ms: Millis(100.0 * factor),
                tokens: TokenCounts {
                    prompt: 100,
                    prefill: 100,
                    decode: 20,
                    ..TokenCounts::default()
                },
                out_hash: format!("{flow}-{step}"),
                ..MeasuredStep::default()
            });
            start += 100.0 * factor;
            path.push(CriticalStep {
                step: step.to_owned(),
                ms: Millis(100.0 * factor),
            });
        }
        workflows.push(WorkflowRecord {
            flow: flow + 1,
            row: format!("row-{flow}"),
            workflow_ms: Millis(start),
            steps_done: STEPS.len(),
            steps: STEPS.len(),
            critical_path: path,
            ..WorkflowRecord::default()
        });
    }
    let total: f64 = workflows.iter().map(|flow| flow.workflow_ms.0).sum();
    let mut tokens = TokenCounts::default();
    for step in &steps {
        tokens += step.tokens;
    }
    let totals = Totals {
        workflows_done: flows,
        steps_done: steps.len(),
        tokens,
        benchmark_total_ms: Some(Millis(total + 300.0)),
        avg_workflow_ms: Some(Millis(total / flows as f64)),
        ..Totals::default()
    };
    let expansion = ExpansionRecord {
        template: "made".to_owned(),
        fixture_hash: "f".repeat(64),
        template_hash: "t".repeat(64),
        fixture_bytes: 0,
        fixture_files: 0,
        num_flows: flows,
        cached: true,
        miss: None,
        flow_expansion_ms: Millis(1.0),
        prefix: None,
        template_text: None,
        steps: Vec::new(),
    };
    let record = RunRecord {
        schema: RECORD_SCHEMA,
        run_id: id.to_owned(),
        started_at: "2026-01-31T09:30:00Z".to_owned(),
        status: Status::Complete,
        error: None,
        settings: std::collections::BTreeMap::new(),
        environment: Environment::default(),
        expansion,
        engine: serde_json::json!({"kind": "scripted"}),
        engine_init_ms: Some(Millis(300.0)),
        pool_init_ms: None,
        evaluator: None,
        gpu: None,
        validity: None,
        discarded: Vec::new(),
        engine_starts: 1,
        workflows,
        totals,
        segments: Vec::new(),
        warnings: Vec::new(),
        comparison: None,
        rollouts: None,
        profile: None,
        repetition: None,
        shard: None,
        shards: Vec::new(),
    };
    MeasuredRun { record, steps }
}
