//! What is answered: the table, Prometheus text, JSON, the page.

use std::fmt::Write;

use serde_json::json;

use crate::engine::{DeviceLoad, device_load};
use crate::profile::{self, Distribution, Live};
use crate::record::profile::Profile;

/// The page: it asks for `/live.json` and shows it. Nothing in it comes from elsewhere.
const PAGE: &str = include_str!("page.html");

/// The run at one moment.
#[derive(Debug, Default)]
pub(super) struct Reading {
    profile: Profile,
    live: Live,
    /// Tokens generated per second, over the last seconds.
    tokens_per_second: f64,
    resident_bytes: Option<u64>,
    device: DeviceLoad,
}

impl Reading {
    pub(super) fn now(tokens_per_second: f64) -> Self {
        Self {
            profile: profile::snapshot().unwrap_or_default(),
            live: profile::live().unwrap_or_default(),
            tokens_per_second,
            resident_bytes: resident_bytes(),
            device: device_load(),
        }
    }
}

/// Memory of this process that is in RAM.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    Some(kib * 1024)
}

/// A status with its body.
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

    /// As it is sent.
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
        "device": {
            "memory_used_bytes": reading.device.memory_used_bytes,
            "memory_bytes": reading.device.memory_bytes,
            "power_watts": reading.device.power_watts,
        },
    })
    .to_string()
}

/// Prometheus' text format, version 0.0.4:
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
        "Time since the profile's start.",
        reading.profile.wall_s,
    )?;
    one(
        "flows",
        "gauge",
        "Flows that the run has, over all its rounds.",
        live.flows as f64,
    )?;
    one(
        "flows_running",
        "gauge",
        "Flows that go on.",
        live.flows_running as f64,
    )?;
    one(
        "flows_ended_total",
        "counter",
        "Flows that have ended, well or badly.",
        live.flows_ended as f64,
    )?;
    one(
        "flows_failed_total",
        "counter",
        "Flows that have ended badly.",
        live.flows_failed as f64,
    )?;
    one(
        "steps_ended_total",
        "counter",
        "Steps that have ended, well or badly.",
        live.steps_ended as f64,
    )?;
    one(
        "generated_tokens_total",
        "counter",
        "Tokens that were generated.",
        live.generated_tokens as f64,
    )?;
    one(
        "prefilled_tokens_total",
        "counter",
        "Prompt tokens that were computed.",
        live.prefilled_tokens as f64,
    )?;
    one(
        "generated_tokens_per_second",
        "gauge",
        "Tokens generated per second, over the last seconds.",
        reading.tokens_per_second,
    )?;
    one(
        "kv_pages",
        "gauge",
        "Pages of KV memory.",
        live.kv_pages as f64,
    )?;
    one(
        "kv_pages_held",
        "gauge",
        "Pages of KV memory that sequences hold.",
        live.kv_pages_held as f64,
    )?;
    one(
        "idle_seconds_total",
        "counter",
        "Time in which no stage was at work.",
        reading.profile.idle_s,
    )?;
    let device = &reading.device;
    let measured = [
        (
            "resident_memory_bytes",
            "Memory of this process in RAM.",
            reading.resident_bytes.map(|bytes| bytes as f64),
        ),
        (
            "device_memory_used_bytes",
            "Memory of the device in use.",
            device.memory_used_bytes.map(|bytes| bytes as f64),
        ),
        (
            "device_memory_bytes",
            "Memory of the device.",
            device.memory_bytes.map(|bytes| bytes as f64),
        ),
        (
            "device_power_watts",
            "Power that the device draws.",
            device.power_watts,
        ),
    ];
    for (name, help, value) in measured {
        if let Some(value) = value {
            one(name, "gauge", help, value)?;
        }
    }
    writeln!(
        out,
        "# HELP flowbench_stage_seconds_total A stage's equal share of the wall time."
    )?;
    writeln!(out, "# TYPE flowbench_stage_seconds_total counter")?;
    for stage in &reading.profile.stages {
        // The names are letters, dots and underscores: nothing to escape.
        writeln!(
            out,
            "flowbench_stage_seconds_total{{stage=\"{}\"}} {}",
            stage.name, stage.split_s
        )?;
    }
    histogram(
        out,
        "ttft_seconds",
        "From a step's submission to its first token.",
        &live.ttft,
    )?;
    histogram(
        out,
        "step_seconds",
        "From a step's submission to its end.",
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
    fn an_answer_says_how_long_it_is() {
        let answer = Answer::error("405 Method Not Allowed");
        let whole = String::from_utf8(answer.bytes(true)).expect("UTF-8");
        let (head, body) = whole.split_once("\r\n\r\n").expect("a body");
        assert!(head.contains("\r\nAllow: GET, HEAD\r\n"));
        assert!(head.contains(&format!("\r\nContent-Length: {}\r\n", body.len())));
        let head_only = String::from_utf8(answer.bytes(false)).expect("UTF-8");
        assert_eq!(head_only, format!("{head}\r\n\r\n"));
    }

    #[test]
    fn the_page_needs_nothing_from_elsewhere() {
        for outside in ["http://", "https://", "src=", "@import", "url("] {
            assert!(!PAGE.contains(outside), "{outside}");
        }
        assert_eq!(answer("/", &Reading::default()).status, "200 OK");
        assert!(answer("/x", &Reading::default()).status.starts_with("404"));
    }
}
