//! Flows: what a template × a fixture expands to, and the cache that keeps them.
//!
//! The way in is [`expand()`]: it finds the template, reads the fixture, uses the cache or writes it
//! anew, and hands out the [`Flow`]s. [`Resolver`] then fills in, at the run, what was left open.
//!
//! ```text
//! template ── manifest (TOML keys), split (${…}), graph (needs), rows (suite), includes
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
mod manifest;
mod place;
mod render;
mod rows;
mod scope;
mod share;
mod split;
mod template;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use cache::{CacheState, MissReason};
pub use expand::{ExpandRequest, Expansion, check, expand};
pub use expression::Resolver;
pub use fixture::FixtureSize;
pub use lock::OnWait;
pub use share::{PrefixShare, StepShare};

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

/// One step of a flow: one generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Unique within the flow.
    pub id: String,
    /// Ids of the steps that must have ended before this one starts.
    pub needs: Vec<String>,
    /// Whether the conversation goes on or starts anew.
    pub context: Context,
    /// The user message, in parts; joined they are the message.
    pub prompt: Vec<Part>,
    /// Most tokens to generate.
    pub max_tokens: usize,
    /// Temperature; 0 is greedy.
    #[serde(default)]
    pub temperature: f32,
    /// Nucleus sampling; 1 keeps every token.
    #[serde(default = "one")]
    pub top_p: f32,
    /// Keeps the likeliest tokens; 0 keeps every one.
    #[serde(default)]
    pub top_k: usize,
}

fn one() -> f32 {
    1.0
}

/// Whether a step goes on with a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Context {
    /// A new conversation: the system message and this step's prompt.
    #[default]
    Fresh,
    /// The conversation of the one step that it needs goes on: that step's messages, its answer,
    /// then this step's prompt.
    Append,
}

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Part {
    /// Text, complete since the expansion.
    Text(String),
    /// The inside of a `${ … }`: a minijinja expression over `steps.<id>.text`, resolved when the
    /// steps that it names have ended.
    Expr(String),
}

impl Part {
    /// The text, if that is what it is.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            Self::Expr(_) => None,
        }
    }
}

#[cfg(test)]
mod tests;
