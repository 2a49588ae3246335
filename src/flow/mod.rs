//! Flows: what a template × a fixture expands to, and the cache that keeps them.
//!
//! The way in is [`expand()`]: it finds the template, reads the fixture, uses the cache or writes it
//! anew, and hands out the [`Flow`]s. [`Resolver`] then fills in, at the run, what was left open.
//!
//! ```text
//! template ── manifest (TOML keys), steps (kinds, graph of needs), unroll (loops), split (${…}),
//!             rows (suite), includes
//! fixture  ── folder of files, or rows
//!    └─ render, scope ─► Flow ─► cache (digests, atomic writes), lock ─► flows/_expanded_NNNNN.json
//! ```

mod cache;
mod expand;
mod expression;
mod fixture;
mod graph;
mod includes;
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
pub use expand::{Expansion, check, expand};
pub use expression::Resolver;
pub use fixture::FixtureSize;
pub use lock::OnWait;
pub use request::{ExpandRequest, Input};
pub use rows::{InputRow, RowOrder};
pub use share::{PrefixShare, StepShare};
pub use visible::{Readable, Scored, Visible};
pub use work::{Context, Evaluate, Generate, Judge, Part, Select, Task, Verify, Work};

/// One expanded instance of a template: a DAG of steps, in an order in which each step comes after
/// those that it needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flow {
    /// The template's name.
    pub template: String,
    /// Number of the flow, from 1.
    pub flow: usize,
    /// The suite row's `id`, or its number (from 1) where it has none.
    pub row: String,
    /// The system message, complete: nothing in it is left for the run.
    pub system: Option<Arc<str>>,
    /// The steps.
    pub steps: Vec<Step>,
}

/// One step of a flow.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Unique within the flow: the template's id, with `.` and the generation in a loop.
    pub id: String,
    /// Ids of the steps that must have ended before this one starts.
    pub needs: Vec<String>,
    /// In a loop only: which time the loop's steps run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<Generation>,
    /// What it does.
    pub work: Work,
}

impl Step {
    /// The id that the template has it under, the same in every generation.
    pub fn name(&self) -> &str {
        self.id.split('.').next().unwrap_or(&self.id)
    }

    /// What it asks the model for, if that is what it does.
    pub fn generate(&self) -> Option<&Generate> {
        match &self.work {
            Work::Generate(generate) => Some(generate),
            _ => None,
        }
    }
}

/// A step's place in a loop.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    /// Number of the loop, from 1 in the order of the template.
    pub r#loop: usize,
    /// From 1.
    pub number: usize,
    /// The step that its expressions know as `previous`: what the loop starts from, or what the
    /// generation before carries over.
    pub previous: String,
    /// Whether this is the step that the next generation goes on from.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub carries: bool,
}

#[cfg(test)]
mod tests;
