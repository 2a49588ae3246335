//! Renders the answers: the table, Prometheus metrics, JSON, the page.

use std::fmt::Write;

use serde_json::json;

use crate::engine::{GpuReading, read_gpu};
use crate::profile::{self, Distribution, Live};
use crate::record::profile::Profile;

/// The page. It polls `/live.json` and loads nothing from other hosts.
const PAGE: &str = include_str!("page.html");

/// Snapshot of the run.
#[derive(Debug, Default)]
pub(super) struct Reading {
    profile: Profile,
    live: Live,
    /// Tokens generated per second over the last seconds.
    tokens_per_second: f64,
    resident_bytes: Option<u64>,
    /// All unknown without a GPU.
    gpu: GpuReading,
}

impl Reading {
    pub(super) fn now(tokens_per_second: f64) -> Self {
        Self {
            profile: profile::snapshot().unwrap_or_default(),
            live: profile::live().unwrap_or_default(),
            tokens_per_second,
            resident_bytes: resident_bytes(),
            gpu: read_gpu().unwrap_or_default(),
        }
    }
}

/// Resident memory of this process (RSS).
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: &'static str,
    content_type: &'static str,
    body: String,
}

impl Answer {
    pub(super) fn error(status: &'static str) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            body: format!("{status}\n"),
        }
    }

    fn ok(content_type: &'static str, body: String) -> Self {
        Self {
            status: "200 OK",
            content_type,
            body,
        }
    }

    /// The response on the wire.
    pub(super) fn bytes(&self, with_body: bool) -> Vec<u8> {
        let body = if with_body { self.body.as_str() } else { "" };
        let allow = match self.status.starts_with("405") {
            true => "Allow: GET, HEAD\r\n",
            false => "",
        };
        format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n{body}",
            self.status,
            self.content_type,
            self.body.len(),
        )
        .into_bytes()
    }
}

pub(super) fn answer(path: &str, reading: &Reading) -> Answer {
    match path {
        "/" => Answer::ok("text/html; charset=utf-8", PAGE.to_owned()),
        "/stats" => Answer::ok("text/plain; charset=utf-8", profile::text(&reading.profile)),
        "/metrics" => Answer::ok("text/plain; version=0.0.4; charset=utf-8", metrics(reading)),
        "/live.json" => Answer::ok("application/json", live_json(reading)),
        _ => Answer::error("404 Not Found"),
    }
}

fn live_json(reading: &Reading) -> String {
    json!({
        "wall_s": reading.profile.wall_s,
        "live": reading.live,
        "tokens_per_second": reading.tokens_per_second,
        "stages": reading.profile.stages,
        "idle_s": reading.profile.idle_s,
        "resident_bytes": reading.resident_bytes,
        "device": device_json(&reading.gpu),
    })
    .to_string()
}

/// The fields of a reading in a run's record, and the card's memory. Unknown ones are `null`.
fn device_json(gpu: &GpuReading) -> serde_json::Value {
    let mut device = serde_json::to_value(&gpu.values).unwrap_or_default();
    device["memory_bytes"] = gpu.memory_bytes.into();
    device
}

/// Prometheus text format, version 0.0.4:
/// <https://prometheus.io/docs/instrumenting/exposition_formats/>.
fn metrics(reading: &Reading) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_metrics(&mut out, reading);
    out
}

fn write_metrics(out: &mut String, reading: &Reading) -> std::fmt::Result {
    let live = &reading.live;
    let mut one = |name: &str, kind: &str, help: &str, value: f64| {
        writeln!(out, "# HELP flowbench_{name} {help}")?;
        writeln!(out, "# TYPE flowbench_{name} {kind}")?;
        writeln!(out, "flowbench_{name} {value}")
    };
    one(
        "uptime_seconds",
        "gauge",
        "Time since the start of the profile.",
        reading.profile.wall_s,
    )?;
    one(
        "flows",
        "gauge",
        "Flows of the run, over all rounds.",
        live.flows as f64,
    )?;
    one(
        "flows_running",
        "gauge",
        "Flows in progress.",
        live.flows_running as f64,
    )?;
    one(
        "flows_ended_total",
        "counter",
        "Finished flows, including failed ones.",
        live.flows_ended as f64,
    )?;
    one(
        "flows_failed_total",
        "counter",
        "Failed flows.",
        live.flows_failed as f64,
    )?;
    one(
        "steps_ended_total",
        "counter",
        "Finished steps, including failed ones.",
        live.steps_ended as f64,
    )?;
    one(
        "generated_tokens_total",
        "counter",
        "Generated tokens.",
        live.generated_tokens as f64,
    )?;
    one(
        "prefilled_tokens_total",
        "counter",
        "Computed prompt tokens.",
        live.prefilled_tokens as f64,
    )?;
    one(
        "generated_tokens_per_second",
        "gauge",
        "Tokens generated per second over the last seconds.",
        reading.tokens_per_second,
    )?;
    one(
        "kv_pages",
        "gauge",
        "Total number of KV cache pages.",
        live.kv_pages as f64,
    )?;
    one(
        "kv_pages_held",
        "gauge",
        "KV cache pages held by sequences.",
        live.kv_pages_held as f64,
    )?;
    one(
        "idle_seconds_total",
        "counter",
        "Time without an open stage.",
        reading.profile.idle_s,
    )?;
    let gpu = &reading.gpu.values;
    let measured = [
        (
            "resident_memory_bytes",
            "Resident memory of this process.",
            reading.resident_bytes.map(|bytes| bytes as f64),
        ),
        (
            "device_memory_used_bytes",
            "Device memory in use.",
            gpu.memory_used_bytes.map(|bytes| bytes as f64),
        ),
        (
            "device_memory_bytes",
            "Total device memory.",
            reading.gpu.memory_bytes.map(|bytes| bytes as f64),
        ),
        (
            "device_power_watts",
            "Power draw of the device.",
            gpu.power_watts,
        ),
        (
            "device_clock_sm_hertz",
            "Clock of the device's multiprocessors.",
            gpu.clock_sm_mhz.map(|clock| 1e6 * f64::from(clock)),
        ),
        (
            "device_temperature_celsius",
            "Temperature of the device.",
            gpu.temperature_celsius.map(f64::from),
        ),
        (
            "device_other_processes",
            "Other processes that use the device.",
            gpu.other_processes
                .as_ref()
                .map(|others| others.len() as f64),
        ),
    ];
    for (name, help, value) in measured {
        if let Some(value) = value {
            one(name, "gauge", help, value)?;
        }
    }
    writeln!(
        out,
        "# HELP flowbench_stage_seconds_total Share of the wall time per stage, split equally while several are active."
    )?;
    writeln!(out, "# TYPE flowbench_stage_seconds_total counter")?;
    for stage in &reading.profile.stages {
        // Stage names consist of letters, dots and underscores: no escaping needed.
        writeln!(
            out,
            "flowbench_stage_seconds_total{{stage=\"{}\"}} {}",
            stage.name, stage.split_s
        )?;
    }
    histogram(
        out,
        "ttft_seconds",
        "Time from the submission of a step to its first token.",
        &live.ttft,
    )?;
    histogram(
        out,
        "step_seconds",
        "Time from the submission of a step to its end.",
        &live.step,
    )
}

fn histogram(out: &mut String, name: &str, help: &str, of: &Distribution) -> std::fmt::Result {
    writeln!(out, "# HELP flowbench_{name} {help}")?;
    writeln!(out, "# TYPE flowbench_{name} histogram")?;
    for (bound, count) in &of.at_most {
        writeln!(out, "flowbench_{name}_bucket{{le=\"{bound}\"}} {count}")?;
    }
    writeln!(out, "flowbench_{name}_bucket{{le=\"+Inf\"}} {}", of.count)?;
    writeln!(out, "flowbench_{name}_sum {}", of.sum_s)?;
    writeln!(out, "flowbench_{name}_count {}", of.count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_have_a_content_length() {
        let answer = Answer::error("405 Method Not Allowed");
        let whole = String::from_utf8(answer.bytes(true)).expect("UTF-8");
        let (head, body) = whole.split_once("\r\n\r\n").expect("a body");
        assert!(head.contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        let head_only = String::from_utf8(answer.bytes(false)).expect("UTF-8");
        assert_eq!(head_only, format!("{head}\r\n\r\n"));
    }

    #[test]
    fn the_page_is_self_contained() {
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        assert_eq!(answer("/", &Reading::default()).status, "200 OK");
        assert!(answer("/x", &Reading::default()).status.starts_with("404"));
    }
}
