//! Counters of the server, for `/metrics` (OpenMetrics text).

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use crate::engine::{Completion, Occupancy};
use crate::units::Millis;

/// The media type of the text.
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// How a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(super) enum Outcome {
    Finished,
    /// The client closed its connection, or the server ended.
    Cancelled,
    Failed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: Outcome,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabel {
    path: String,
    status: u16,
}

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;

#[derive(Debug)]
pub(super) struct Metrics {
    registry: Registry,
    http: Family<HttpLabel, Count>,
    choices: Family<OutcomeLabel, Count>,
    prompt_tokens: Count,
    cached_tokens: Count,
    generated_tokens: Count,
    unfinished: Level,
    waiting: Level,
    pages: Level,
    pages_limit: Level,
    queue: Level,
    pub(super) connections: Level,
    threads: Level,
    files: Level,
    queue_wait: Histogram,
    first_token: Histogram,
    token_time: Histogram,
    duration: Histogram,
}

/// Seconds, each bucket twice the one before.
fn times(first: f64, count: u16) -> Histogram {
    Histogram::new(exponential_buckets(first, 2.0, count))
}

impl Metrics {
    pub(super) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("flowbench"),
            http: Family::default(),
            choices: Family::default(),
            prompt_tokens: Count::default(),
            cached_tokens: Count::default(),
            generated_tokens: Count::default(),
            unfinished: Level::default(),
            waiting: Level::default(),
            pages: Level::default(),
            pages_limit: Level::default(),
            queue: Level::default(),
            connections: Level::default(),
            threads: Level::default(),
            files: Level::default(),
            queue_wait: times(0.0005, 18),
            first_token: times(0.0005, 18),
            token_time: times(0.000_125, 16),
            duration: times(0.001, 20),
        };
        let registry = &mut metrics.registry;
        let http = metrics.http.clone();
        registry.register("http_requests", "HTTP requests by path and status", http);
        let choices = metrics.choices.clone();
        registry.register("choices", "Choices by how they ended", choices);
        for (name, help, counter) in [
            (
                "prompt_tokens",
                "Prompt tokens of finished choices",
                &metrics.prompt_tokens,
            ),
            (
                "cached_prompt_tokens",
                "Prompt tokens of finished choices that were not computed anew",
                &metrics.cached_tokens,
            ),
            (
                "generated_tokens",
                "Generated tokens",
                &metrics.generated_tokens,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, gauge) in [
            ("sequences", "Choices in the engine", &metrics.unfinished),
            (
                "sequences_waiting",
                "Choices that have not begun",
                &metrics.waiting,
            ),
            (
                "kv_pages_held",
                "KV pages of unfinished choices",
                &metrics.pages,
            ),
            ("kv_pages_limit", "KV pages at most", &metrics.pages_limit),
            (
                "queue_places_taken",
                "Places of the queue (--max-queue) taken",
                &metrics.queue,
            ),
            ("connections", "Open connections", &metrics.connections),
            ("threads", "Threads of the process", &metrics.threads),
            (
                "open_files",
                "Open files and sockets of the process",
                &metrics.files,
            ),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, histogram) in [
            (
                "queue_seconds",
                "From arrival to the first pass",
                &metrics.queue_wait,
            ),
            (
                "time_to_first_token_seconds",
                "From arrival to the first token",
                &metrics.first_token,
            ),
            (
                "time_per_output_token_seconds",
                "Between the first and the last token, by token",
                &metrics.token_time,
            ),
            (
                "request_duration_seconds",
                "From arrival to the end",
                &metrics.duration,
            ),
        ] {
            registry.register(name, help, histogram.clone());
        }
        metrics
    }

    /// Counts a response. `path` must be one of the server's own: labels are kept for good.
    pub(super) fn responded(&self, path: &str, status: u16) {
        let label = HttpLabel {
            path: path.to_owned(),
            status,
        };
        self.http.get_or_create(&label).inc();
    }

    pub(super) fn occupied(&self, occupancy: Occupancy) {
        let level = |gauge: &Level, value: usize| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        level(&self.unfinished, occupancy.requests);
        level(&self.waiting, occupancy.waiting);
        level(&self.pages, occupancy.kv_pages);
        level(&self.pages_limit, occupancy.kv_pages_limit);
    }

    pub(super) fn generated(&self) {
        self.generated_tokens.inc();
    }

    pub(super) fn waited(&self, wait: Millis) {
        self.queue_wait.observe(wait.0 / 1e3);
    }

    pub(super) fn ended(&self, outcome: Outcome) {
        self.choices.get_or_create(&OutcomeLabel { outcome }).inc();
    }

    /// `first` and `whole` are from arrival to the first token and to the end.
    pub(super) fn finished(&self, completion: &Completion, first: Option<Millis>, whole: Millis) {
        self.ended(Outcome::Finished);
        self.prompt_tokens.inc_by(completion.prompt_tokens as u64);
        self.cached_tokens.inc_by(completion.reused_tokens as u64);
        self.duration.observe(whole.0 / 1e3);
        let Some(first) = first else {
            return;
        };
        self.first_token.observe(first.0 / 1e3);
        let tokens = completion.decode_tokens();
        if tokens > 1 {
            let each = (whole.0 - first.0) / (tokens - 1) as f64;
            self.token_time.observe(each / 1e3);
        }
    }

    /// The text of `/metrics`.
    pub(super) fn text(&self, places_taken: usize) -> String {
        self.queue
            .set(i64::try_from(places_taken).unwrap_or(i64::MAX));
        for (gauge, folder) in [
            (&self.threads, "/proc/self/task"),
            (&self.files, "/proc/self/fd"),
        ] {
            // Only Linux has these.
            let entries = std::fs::read_dir(folder).map_or(0, Iterator::count);
            gauge.set(i64::try_from(entries).unwrap_or(i64::MAX));
        }
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
