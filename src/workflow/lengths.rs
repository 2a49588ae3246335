//! Whether an engine can take the longest prompts that are known before the flows run.

use std::collections::HashMap;

use super::RunnerOptions;
use crate::engine::{Engine, Message, Origin, Request, Role, Sampling};
use crate::error::Result;
use crate::flow::{Context, Flow, Generate, Part, Step};

/// Asks the engine about the longest prompts and the longest answers of the flows' steps, as far as they
/// are known: what earlier steps will say is not.
///
/// # Errors
/// Exit code 3 where one of them is too long for the engine, whatever else happens.
pub fn check_lengths(engine: &dyn Engine, flows: &[Flow], options: &RunnerOptions) -> Result<()> {
    let mut longest: Option<(usize, &Flow, &Step)> = None;
    let mut most: Option<(usize, &Flow, &Step)> = None;
    for flow in flows {
        for (step, generate, bytes) in known_bytes(flow) {
            keep(&mut longest, (bytes, flow, step));
            let tokens = options.max_tokens.unwrap_or(generate.max_tokens);
            keep(&mut most, (bytes.saturating_add(tokens), flow, step));
        }
    }
    for (_, flow, step) in longest.into_iter().chain(most) {
        engine
            .check(&known_request(flow, step, options))
            .map_err(|error| error.context(format!("flow {}, step {}", flow.flow, step.id)))?;
    }
    Ok(())
}

fn keep<'a>(kept: &mut Option<(usize, &'a Flow, &'a Step)>, other: (usize, &'a Flow, &'a Step)) {
    if kept.is_none_or(|(size, ..)| other.0 > size) {
        *kept = Some(other);
    }
}

/// The step whose conversation a step goes on with.
fn parent<'a>(step: &'a Step, generate: &Generate) -> Option<&'a str> {
    match generate.context {
        Context::Append => step.needs.first().map(String::as_str),
        Context::Fresh => None,
    }
}

/// The texts of a prompt that no other step writes.
fn texts(generate: &Generate) -> impl Iterator<Item = &str> {
    generate.prompt.iter().filter_map(Part::as_text)
}

/// The steps of a flow that generate, and how many bytes of each one's conversation are known.
fn known_bytes(flow: &Flow) -> Vec<(&Step, &Generate, usize)> {
    let system = flow.system.as_ref().map_or(0, |system| system.len());
    let mut by_id: HashMap<&str, usize> = HashMap::new();
    let mut known = Vec::new();
    for step in &flow.steps {
        let Some(generate) = step.generate() else {
            continue;
        };
        let before = parent(step, generate).and_then(|id| by_id.get(id));
        let own: usize = texts(generate).map(str::len).sum();
        let bytes = before.unwrap_or(&system) + own;
        by_id.insert(&step.id, bytes);
        known.push((step, generate, bytes));
    }
    known
}

/// The request of a step, without what is not known of it.
fn known_request(flow: &Flow, step: &Step, options: &RunnerOptions) -> Request {
    let by_id: HashMap<&str, &Step> = (flow.steps.iter())
        .map(|step| (step.id.as_str(), step))
        .collect();
    let mut messages = Vec::new();
    let mut max_tokens = None;
    let mut next = Some(step);
    while let Some((step, generate)) = next.and_then(|step| Some((step, step.generate()?))) {
        if max_tokens.is_none() {
            max_tokens = Some(generate.max_tokens);
        } else {
            // What was answered before: templates want the roles to take turns.
            messages.push((Role::Assistant, String::new()));
        }
        messages.push((Role::User, texts(generate).collect()));
        next = parent(step, generate).and_then(|id| by_id.get(id).copied());
    }
    messages.extend((flow.system.iter()).map(|system| (Role::System, system.to_string())));
    let messages = messages.into_iter().rev();
    Request {
        origin: Origin::default(),
        messages: messages
            .map(|(role, content)| Message { role, content })
            .collect(),
        max_tokens: options.max_tokens.or(max_tokens).unwrap_or(1),
        ignore_eos: options.ignore_eos,
        sampling: Sampling::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::tests::{flow_of, generate_of};

    #[test]
    fn what_is_known_of_a_conversation_is_all_but_the_answers() {
        let mut flow = flow_of(&[("a", &[]), ("b", &["a"]), ("c", &["b"])]);
        flow.system = Some("system".into());
        generate_of(&mut flow, 1).context = Context::Append;
        generate_of(&mut flow, 1).prompt = vec![
            Part::Text("one ".to_owned()),
            Part::Expr("steps.a.text".to_owned()),
            Part::Text(" two".to_owned()),
        ];
        generate_of(&mut flow, 1).max_tokens = 7;
        let step = |step: usize| &flow.steps[step];
        let request = known_request(&flow, step(1), &RunnerOptions::default());
        let said: Vec<_> = request
            .messages
            .iter()
            .map(|message| (message.role, message.content.as_str()))
            .collect();
        assert_eq!(
            said,
            [
                (Role::System, "system"),
                (Role::User, "prompt of a"),
                (Role::Assistant, ""),
                (Role::User, "one  two"),
            ]
        );
        assert_eq!(request.max_tokens, 7);
        let all: usize = said.iter().map(|(_, text)| text.len()).sum();
        assert_eq!(known_bytes(&flow)[1].2, all);
        // A conversation of its own.
        let options = RunnerOptions {
            max_tokens: Some(3),
            ..RunnerOptions::default()
        };
        let request = known_request(&flow, step(2), &options);
        assert_eq!((request.messages.len(), request.max_tokens), (2, 3));
    }
}
