//! Checks, before the flows run, that the engine's context is large enough for their longest prompts.

use std::collections::HashMap;

use super::RunnerOptions;
use crate::engine::{Engine, Message, Origin, Request, RequestOptions, Role, Sampling};
use crate::error::Result;
use crate::flow::{Context, Flow, Generate, Part, Step};

/// Checks the requests with the longest prompt and with the longest prompt plus answer, without the answers
/// of earlier steps, which are not known yet.
///
/// # Errors
/// Exit code 3 if one of them cannot fit.
pub fn check_lengths(engine: &dyn Engine, flows: &[Flow], options: &RunnerOptions) -> Result<()> {
    let mut prompt = Longest::default();
    let mut sequence = Longest::default();
    for flow in flows {
        for known in known_steps(flow) {
            prompt.keep(known.bytes, flow, known.step);
            let tokens = options.max_tokens.unwrap_or(known.generate.max_tokens);
            sequence.keep(known.bytes.saturating_add(tokens), flow, known.step);
        }
    }
    for (flow, step) in prompt.step.into_iter().chain(sequence.step) {
        engine
            .check(&known_request(flow, step, options))
            .map_err(|error| error.context(format!("flow {}, step {}", flow.flow, step.id)))?;
    }
    Ok(())
}

/// The first of the longest steps.
#[derive(Default)]
struct Longest<'a> {
    size: usize,
    step: Option<(&'a Flow, &'a Step)>,
}

impl<'a> Longest<'a> {
    fn keep(&mut self, size: usize, flow: &'a Flow, step: &'a Step) {
        if self.step.is_none() || size > self.size {
            self.size = size;
            self.step = Some((flow, step));
        }
    }
}

/// A step that generates, and the known length of its conversation.
struct KnownStep<'a> {
    step: &'a Step,
    generate: &'a Generate,
    bytes: usize,
}

/// The step whose conversation a step continues.
fn parent<'a>(step: &'a Step, generate: &Generate) -> Option<&'a str> {
    match generate.context {
        Context::Append => step.needs.first().map(String::as_str),
        Context::Fresh => None,
    }
}

/// The literal texts of a prompt.
fn texts(generate: &Generate) -> impl Iterator<Item = &str> {
    generate.prompt.iter().filter_map(Part::as_text)
}

/// The steps of a flow that generate.
fn known_steps(flow: &Flow) -> Vec<KnownStep<'_>> {
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
        known.push(KnownStep {
            step,
            generate,
            bytes,
        });
    }
    known
}

/// The request of a step as far as it is known.
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
            // Chat templates require the roles to alternate.
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
        options: RequestOptions::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workflow::tests::{flow_of, generate_of};

    #[test]
    fn a_known_conversation_has_everything_but_the_answers() {
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
        assert_eq!(known_steps(&flow)[1].bytes, all);
        // A conversation of its own.
        let options = RunnerOptions {
            max_tokens: Some(3),
            ..RunnerOptions::default()
        };
        let request = known_request(&flow, step(2), &options);
        assert_eq!((request.messages.len(), request.max_tokens), (2, 3));
    }
}
