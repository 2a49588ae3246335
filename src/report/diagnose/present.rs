//! The settings of a run that advice depends on: nothing is advised that the run does already.

use serde::Serialize;
use serde_json::Value;

use crate::record::{RunRecord, StepRecord};

/// A setting that advice refers to, with its value in the run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Setting {
    /// Variable, flag or key, such as `MODE`.
    pub name: &'static str,
    /// Such as `standalone`.
    pub present: String,
}

impl std::fmt::Display for Setting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}", self.name, self.present)
    }
}

/// A run, with accessors for the settings that advice depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Present<'a> {
    pub(super) run: &'a RunRecord,
    pub(super) steps: &'a [StepRecord],
    /// Whether the stage times come from a profile.
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

    /// Flows in flight; in `both`, those of the `reuse` rounds.
    pub(super) fn in_flight(&self) -> u64 {
        self.value("concurrency")
            .and_then(Value::as_u64)
            .unwrap_or(1)
    }

    pub(super) fn flows(&self) -> usize {
        self.run.workflows.len()
    }

    /// Whether each workflow gets a new engine; `None` if the record does not say.
    pub(super) fn engine_per_workflow(&self) -> Option<bool> {
        self.value("engine_per_workflow")?.as_bool()
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.value("quiet") == Some(&Value::Bool(true))
    }

    /// Whether the backend supports batching and prefix reuse.
    pub(super) fn batches(&self) -> bool {
        self.engine("backend") != "generic"
    }

    /// Whether the user selected the generic backend explicitly.
    pub(super) fn chose_backend(&self) -> bool {
        self.value("backend").and_then(Value::as_str) == Some("generic")
    }

    /// Whether more concurrency, or another mode, would let the engine batch. Not for `both`, which
    /// has measured it.
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

    /// Queue wait of the steps of these kinds, in seconds.
    pub(super) fn waited(&self, kinds: &[&str]) -> f64 {
        let of_it = self
            .steps
            .iter()
            .filter(|step| kinds.contains(&step.kind()));
        let waits = of_it.filter_map(|step| step.queue_ms);
        waits.map(|wait| wait.seconds()).sum()
    }

    /// How much of the prompts was served from a prefix cache, and how much could be.
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

/// Shares of the prompts, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reuse {
    /// Served from a prefix cache.
    pub(super) reused: f64,
    /// Reusable in the template's present order.
    pub(super) possible: f64,
    /// Reusable with the shared parts first.
    pub(super) reordered: f64,
}

impl Reuse {
    /// Share of the computed prompt text that would be saved if `reach` of the prompts were reused.
    pub(super) fn spared(&self, reach: f64) -> f64 {
        // 1 − reused of the prompts is computed.
        ((reach - self.reused) / (1.0 - self.reused).max(f64::EPSILON)).clamp(0.0, 1.0)
    }
}
