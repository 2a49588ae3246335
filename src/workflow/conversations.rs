//! The shapes of the flows' conversations, which a chat template may or may not accept.

use std::collections::{BTreeSet, HashMap};

use crate::engine::Conversation;
use crate::flow::{Context, Flow, Work};

/// Longer conversations are treated alike: a chat template that renders this many turns renders more.
const MAX_TURNS: usize = 3;

/// The distinct shapes of the flows' conversations.
pub(super) fn kinds(flows: &[Flow]) -> Vec<Conversation> {
    let mut kinds = BTreeSet::new();
    for flow in flows {
        // Steps are in topological order.
        let mut turns: HashMap<&str, usize> = HashMap::new();
        for step in &flow.steps {
            let before = |id: Option<&String>| {
                let turns = id.and_then(|id| turns.get(id.as_str()));
                turns.copied().unwrap_or_default()
            };
            let (has_system, count) = match &step.work {
                Work::Generate(generate) => {
                    let before = match generate.context {
                        Context::Append => before(step.needs.first()),
                        Context::Fresh => 0,
                    };
                    (flow.system.is_some(), (before + 1).min(MAX_TURNS))
                }
                Work::Judge(judge) => {
                    kinds.insert(Conversation {
                        has_system: false,
                        turns: 1,
                    });
                    turns.insert(&step.id, before(Some(&judge.of)));
                    continue;
                }
                work => {
                    turns.insert(&step.id, before(work.of().first()));
                    continue;
                }
            };
            turns.insert(&step.id, count);
            kinds.insert(Conversation {
                has_system,
                turns: count,
            });
        }
    }
    kinds.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::tests::{flow_of, generate_of};

    #[test]
    fn conversations_differ_by_system_message_and_turns() {
        let none: &[&str] = &[];
        let mut flow = flow_of(&[("a", none), ("b", &["a"]), ("c", &["b"])]);
        let turns = |flow: &Flow| -> Vec<usize> {
            let kinds = kinds(std::slice::from_ref(flow));
            kinds.iter().map(|kind| kind.turns).collect()
        };
        assert_eq!(turns(&flow), [1]);
        for step in [1, 2] {
            generate_of(&mut flow, step).context = Context::Append;
        }
        assert_eq!(turns(&flow), [1, 2, 3]);
        let mut with_system = flow.clone();
        with_system.system = Some("s".into());
        assert_eq!(kinds(&[flow.clone(), with_system, flow]).len(), 6);
    }
}
