//! How the prompts of an expansion differ from those of the flows on disk: what an edit of the template costs.

use std::collections::HashMap;
use std::fs;

use crate::error::Result;

use super::cache::flow_file;
use super::lock::FolderLock;
use super::request::ExpandRequest;
use super::share::{self, PrefixShare};
use super::{Expansion, Flow};

/// The prompts of a set of flows.
#[derive(Debug, Clone, PartialEq)]
pub struct Prompts {
    pub share: PrefixShare,
    /// The flow with number 1.
    first: Flow,
}

impl Prompts {
    pub(super) fn new(first: Flow, share: PrefixShare) -> Self {
        Self { share, first }
    }

    /// The prompts of the flows that are on disk, whether or not they are up to date; `None` if there are
    /// none of the template, or they cannot be read: they are only compared with.
    ///
    /// # Errors
    /// If the caller ends the wait for another run that writes them.
    pub fn on_disk(request: &ExpandRequest, template: &str) -> Result<Option<Self>> {
        let folder = request.layout.flows();
        let _lock = FolderLock::shared(&folder, request.on_wait)?;
        let read = |number: usize| -> Option<Flow> {
            let text = fs::read(folder.join(flow_file(number))).ok()?;
            let flow: Flow = serde_json::from_slice(&text).ok()?;
            (flow.flow == number && flow.template == template).then_some(flow)
        };
        let Some(first) = read(1) else {
            return Ok(None);
        };
        let share = share::measure_flows(&first, (1..).map_while(read));
        Ok(Some(Self { share, first }))
    }

    /// Where the prefix that all flows share has changed since `before`, for each step of both.
    pub fn changes_since(&self, before: &Self) -> HashMap<String, Change> {
        let old: HashMap<&str, u64> = common_bytes(before).collect();
        let mut changes = HashMap::new();
        for (id, now) in common_bytes(self) {
            let Some(&was) = old.get(id) else { continue };
            let same = share::common_start(&before.first, &self.first, id).unwrap_or(0);
            if was == now && same >= was {
                continue;
            }
            let byte = same.min(was).min(now);
            let system = |flow: &Flow| flow.system.as_ref().map_or(0, |text| text.len() as u64);
            let change = if byte < system(&self.first).max(system(&before.first)) {
                Change {
                    byte,
                    message: Message::System,
                }
            } else {
                Change {
                    byte: byte - system(&self.first),
                    message: Message::User,
                }
            };
            changes.insert(id.to_owned(), change);
        }
        changes
    }
}

fn common_bytes(prompts: &Prompts) -> impl Iterator<Item = (&str, u64)> {
    let steps = prompts.share.steps.iter();
    steps.map(|step| (step.id.as_str(), step.common_bytes))
}

/// The first byte that differs in a prefix that all flows share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// Offset in the message, in bytes of text.
    pub byte: u64,
    pub message: Message,
}

/// A message of the conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    System,
    /// The first prompt: what follows an answer is not shared by all flows.
    User,
}

impl Message {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
        }
    }
}

impl Expansion {
    /// The prompts of this expansion; renders every flow once more.
    ///
    /// # Errors
    /// If the template does not render (only possible after [`super::check`]).
    pub fn prompts(&self) -> Result<Prompts> {
        Ok(Prompts::new(self.first_flow()?, self.share()?))
    }
}
