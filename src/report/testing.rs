//! Synthetic run records for the reporters' tests.

use std::collections::BTreeMap;

use serde_json::json;

use crate::record::gpu::{GpuCard, GpuProcess, GpuReading, GpuRecord};
use crate::record::metrics::CriticalStep;
use crate::record::{
    Environment, ExpansionRecord, RunRecord, Status, StepRecord, TokenCounts, Totals,
    WorkflowRecord,
};
use crate::units::Millis;

/// A run of `flows` sequential flows with three steps each. A step takes `queue` + `prefill` +
/// `decode` milliseconds.
pub(crate) fn run(
    flows: usize,
    queue: f64,
    prefill: f64,
    decode: f64,
) -> (RunRecord, Vec<StepRecord>) {
    let init = 200.0;
    let mut at = init;
    let mut steps = Vec::new();
    let mut workflows = Vec::new();
    for flow in 1..=flows {
        let start = at;
        let mut path = Vec::new();
        for (index, id) in ["planner", "executor", "verifier"].into_iter().enumerate() {
            let needs = ["planner", "executor"][..index].last();
            // Vary the durations between flows, so that distributions are not degenerate.
            let stretch = 1.0 + 0.01 * ((flow * 7 + index) % 10) as f64;
            let latency = queue + (prefill + decode) * stretch;
            let first = queue + prefill * stretch;
            steps.push(StepRecord {
                schema: 1,
                flow,
                row: format!("row-{flow}"),
                step: id.to_owned(),
                needs: needs.map(|need| (*need).to_owned()).into_iter().collect(),
                start_ms: Millis(at),
                queue_ms: Some(Millis(queue)),
                latency_ms: Millis(latency),
                ttft_ms: Some(Millis(first)),
                tpot_ms: Some(Millis((latency - first) / 47.0)),
                tokens: TokenCounts {
                    prompt: 800,
                    prefill: 800,
                    decode: 48,
                    ..TokenCounts::default()
                },
                finish: "length".to_owned(),
                out_hash: "00112233aabbccdd".to_owned(),
                output: "<b>text</b>".to_owned(),
                ..StepRecord::default()
            });
            path.push(CriticalStep {
                step: id.to_owned(),
                ms: Millis(latency),
            });
            at += latency;
        }
        workflows.push(WorkflowRecord {
            flow,
            row: format!("row-{flow}"),
            segment: None,
            resumed: false,
            start_ms: Millis(start),
            workflow_ms: Millis(at - start),
            engine_init_ms: None,
            steps_done: 3,
            steps: 3,
            error: None,
            reward: None,
            reward_floor: None,
            tokens: TokenCounts {
                prompt: 2400,
                prefill: 2400,
                decode: 144,
                ..TokenCounts::default()
            },
            critical_path: path,
            slack_ms: BTreeMap::new(),
            ..WorkflowRecord::default()
        });
    }
    let record = RunRecord {
        schema: 1,
        run_id: "20260102T030405Z-standalone".to_owned(),
        started_at: "2026-01-02T03:04:05Z".to_owned(),
        status: Status::Complete,
        error: None,
        settings: [
            ("mode".to_owned(), json!("standalone")),
            ("concurrency".to_owned(), json!(1)),
            ("num_flows".to_owned(), json!(flows)),
        ]
        .into(),
        environment: Environment {
            flowbench: "0.1.0".to_owned(),
            cpu: "A processor <with> a name".to_owned(),
            cpu_threads: 2,
            ..Environment::default()
        },
        expansion: ExpansionRecord {
            template: "three_step".to_owned(),
            fixture_hash: "0".repeat(64),
            template_hash: "1".repeat(64),
            fixture_bytes: 2430,
            fixture_files: 2,
            num_flows: flows,
            cached: true,
            miss: None,
            flow_expansion_ms: Millis(5.0),
            prefix: None,
            template_text: None,
            steps: Vec::new(),
        },
        engine: json!({"kind": "local", "model": "a model", "backend": "native"}),
        evaluator: None,
        gpu: None,
        validity: None,
        discarded: Vec::new(),
        engine_init_ms: Some(Millis(init)),
        pool_init_ms: None,
        rollouts: None,
        engine_starts: 1,
        workflows,
        totals: Totals {
            workflows_done: flows,
            steps_done: 3 * flows,
            tokens: TokenCounts {
                prompt: 2400 * flows,
                prefill: 2400 * flows,
                decode: 144 * flows,
                ..TokenCounts::default()
            },
            benchmark_total_ms: Some(Millis(at)),
            avg_workflow_ms: Some(Millis((at - init) / flows as f64)),
            ..Totals::default()
        },
        segments: Vec::new(),
        warnings: Vec::new(),
        comparison: None,
        profile: None,
        repetition: None,
        shard: None,
        shards: Vec::new(),
    };
    (record, steps)
}

/// A card that was throttled and shared.
pub(crate) fn gpu() -> GpuRecord {
    let other = GpuProcess {
        pid: 4242,
        memory_bytes: Some(1 << 30),
    };
    GpuRecord {
        card: GpuCard {
            driver: Some("580.65.06".to_owned()),
            power_limit_watts: Some(700.0),
            max_clock_sm_mhz: Some(1980),
            max_clock_memory_mhz: Some(2619),
            mig: Some("off".to_owned()),
            persistence: Some(true),
            ecc: Some(true),
            ..GpuCard::default()
        },
        start: GpuReading {
            clock_sm_mhz: Some(1410),
            clock_memory_mhz: Some(2619),
            temperature_celsius: Some(45),
            ..GpuReading::default()
        },
        end: Some(GpuReading {
            clock_sm_mhz: Some(1755),
            clock_memory_mhz: Some(2619),
            temperature_celsius: Some(61),
            ..GpuReading::default()
        }),
        seconds: Some(2.5),
        energy_joules: Some(432.5),
        throttle: vec![
            "applications_clocks_setting".to_owned(),
            "sw_power_cap".to_owned(),
        ],
        other_processes: vec![other],
        ..GpuRecord::default()
    }
}
