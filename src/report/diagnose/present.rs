//! What a run has already: advice is for what it has not.

use serde::Serialize;
use serde_json::Value;

use crate::record::{RunRecord, StepRecord};

/// A setting that a piece of advice is about, as it is in the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// The variable, flag or key: `MODE`.
    pub name: &'static str,
    /// Its value in the run: `standalone`.
    pub present: String,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}", self.name, self.present)
    }
}

/// A run, and what of its settings advice depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Present<'a> {
    pub(super) run: &'a RunRecord,
    pub(super) steps: &'a [StepRecord],
    /// Whether the stages are from a profile.
    pub(super) profiled: bool,
}

impl Present<'_> {
    fn value(&self, name: &str) -> Option<&Value> {
        self.run.settings.get(name)
    }

    fn engine(&self, name: &str) -> &str {
        let value = self.run.engine.get(name).and_then(Value::as_str);
        value.unwrap_or_default()
    }

    pub(super) fn mode(&self) -> &str {
        self.value("mode")
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    /// `local`, `remote`, `scripted`.
    pub(super) fn kind(&self) -> &str {
        self.engine("kind")
    }

    /// Flows in flight; in `both` those of the `reuse` rounds.
    pub(super) fn in_flight(&self) -> u64 {
        self.value("concurrency")
            .and_then(Value::as_u64)
            .unwrap_or(1)
    }

    pub(super) fn flows(&self) -> usize {
        self.run.workflows.len()
    }

    /// Whether an engine is started for each workflow; `None` where the record does not say.
    pub(super) fn engine_per_workflow(&self) -> Option<bool> {
        self.value("engine_per_workflow")?.as_bool()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.value("quiet") == Some(&Value::Bool(true))
    }

    /// Whether several sequences share a pass, and prefixes, with this forward pass.
    pub(super) fn batches(&self) -> bool {
        self.engine("backend") != "generic"
    }

    /// Whether the forward pass was asked for by its name.
    pub(super) fn chose_backend(&self) -> bool {
        self.value("backend").and_then(Value::as_str) == Some("generic")
    }

    /// Whether another number of flows in flight, or another mode, would let the engine do more at
    /// once: `both` has measured it.
    pub(super) fn may_batch(&self) -> bool {
        self.mode() != "both"
            && self.in_flight() == 1
            && self.flows() > 1
            && self.engine_per_workflow() != Some(true)
            && match self.kind() {
                "local" => self.batches(),
                kind => kind == "remote",
            }
    }

    pub(super) fn has_pool(&self) -> bool {
        self.run.pool_init_ms.is_some()
    }

    /// The settings of these names.
    pub(super) fn settings(&self, names: &[&'static str]) -> Vec<Setting> {
        let setting = |name: &&'static str| Setting {
            name,
            present: self.present(name),
        };
        names.iter().map(setting).collect()
    }

    fn present(&self, name: &str) -> String {
        let key = name
            .trim_start_matches('-')
            .to_lowercase()
            .replace('-', "_");
        let value = match name {
            "KV_CACHE_MB" => {
                let bytes = self.value("kv_cache_bytes").and_then(Value::as_u64);
                return bytes
                    .map_or_else(|| "unknown".to_owned(), |bytes| (bytes >> 20).to_string());
            }
            "MAX_TOKENS" if self.value("max_tokens").is_none_or(Value::is_null) => {
                return "the template's".to_owned();
            }
            "CONCURRENCY" => return self.in_flight().to_string(),
            "TEMPLATE" => return self.run.expansion.template.clone(),
            "RETRY_DELAY" => self
                .value("remote")
                .and_then(|remote| remote.get("retry_delay_s")),
            _ => self.value(&key),
        };
        match value {
            None | Some(Value::Null) => "unset".to_owned(),
            Some(Value::String(text)) => text.clone(),
            Some(Value::Bool(true)) => "on".to_owned(),
            Some(Value::Bool(false)) => "off".to_owned(),
            Some(value) => value.to_string(),
        }
    }

    /// Time that steps of these kinds waited for their turn, in seconds.
    pub(super) fn waited(&self, kinds: &[&str]) -> f64 {
        let of_it = self
            .steps
            .iter()
            .filter(|step| kinds.contains(&step.kind()));
        let waits = of_it.filter_map(|step| step.queue_ms);
        waits.map(|wait| wait.seconds()).sum()
    }

    /// How much of the prompts was taken from a prefix cache, and how much could be.
    pub(super) fn reuse(&self) -> Option<Reuse> {
        let prefix = self
            .run
            .expansion
            .prefix
            .filter(|prefix| prefix.prompt_bytes > 0)?;
        let of_prompts = |bytes: u64| bytes as f64 / prefix.prompt_bytes as f64;
        let prompt: usize = self.steps.iter().map(|step| step.tokens.prompt).sum();
        let reused: usize = self.steps.iter().map(|step| step.tokens.reused).sum();
        (prompt > 0).then(|| Reuse {
            reused: reused as f64 / prompt as f64,
            possible: of_prompts(prefix.reusable_bytes),
            reordered: of_prompts(prefix.reusable_bytes_reordered),
        })
    }
}

/// Shares of the prompts, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reuse {
    /// Taken from a prefix cache.
    pub(super) reused: f64,
    /// What could be in the template's order.
    pub(super) possible: f64,
    /// What could be with the shared parts first.
    pub(super) reordered: f64,
}

impl Reuse {
    /// The part of what is computed that would be spared if so much were reused.
    pub(super) fn spared(&self, reach: f64) -> f64 {
        // Computed: 1 − reused of the prompts.
        ((reach - self.reused) / (1.0 - self.reused).max(f64::EPSILON)).clamp(0.0, 1.0)
    }
}
