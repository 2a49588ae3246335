//! Flows: what a template and a fixture expand to, and the cache of expanded flows.
//!
//! [`expand()`] is the entry point: it loads the template and the fixture, uses or rebuilds the cache, and
//! returns the [`Flow`]s. At run time, [`Resolver`] fills in what depends on earlier steps.
//!
//! ```text
//! template ── manifest (TOML keys), steps (kinds, graph of needs), unroll (loops), split (${…}),
//!             rows (suite), includes
//! fixture  ── folder of files, or rows
//!    └─ render, scope ─► Flow ─► cache (digests, atomic writes), lock ─► flows/_expanded_NNNNN.json
//! ```

mod cache;
mod compare;
mod expand;
mod expression;
mod fixture;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod graph;
mod includes;
mod limits;
mod lock;
mod loops;
mod manifest;
mod params;
mod place;
mod render;
mod request;
mod rows;
mod scope;
mod share;
mod shipped;
mod sources;
mod split;
mod steps;
mod template;
mod text;
mod unroll;
mod visible;
mod work;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use cache::{CacheState, MissReason};
pub use compare::{Change, Message, Prompts};
pub use expand::{Expansion, check, expand};
pub use expression::Resolver;
pub use fixture::FixtureSize;
pub use lock::OnWait;
pub use request::{ExpandRequest, Input};
pub use rows::{InputRow, RowOrder};
pub use share::{PrefixShare, StepShare};
pub use shipped::Shipped;
pub use sources::ScriptFile;
pub use visible::{Readable, Scored, Visible};
pub use work::{Context, Evaluate, Generate, How, Judge, Part, Select, Task, Verify, Work};

/// One expanded instance of a template: a DAG of steps, in topological order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    pub template: String,
    /// Number of the flow, from 1.
    pub flow: usize,
    /// The `id` of the suite row, or its number (from 1) if it has none.
    pub row: String,
    /// The system message, fully rendered.
    pub system: Option<Arc<str>>,
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Unique within the flow: the template's id, with `.` and the generation in a loop.
    pub id: String,
    /// Ids of the steps that must end before this one starts.
    pub needs: Vec<String>,
    /// Only for steps of a loop.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    pub work: Work,
}

impl Step {
    /// The id in the template, which is the same in every generation.
    pub fn name(&self) -> &str {
        self.id.split('.').next().unwrap_or(&self.id)
    }

    pub fn generate(&self) -> Option<&Generate> {
        match &self.work {
            Work::Generate(generate) => Some(generate),
            _ => None,
        }
    }
}

/// The position of a step in a loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Number of the loop, from 1 in the order of the template.
    pub r#loop: usize,
    /// Number of the generation, from 1.
    pub number: usize,
    /// The step that expressions know as `previous`: the loop's start, or the carried step of the
    /// preceding generation.
    pub previous: String,
    /// Whether this is the step carried over to the next generation.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carries: bool,
}

#[cfg(test)]
mod tests;
