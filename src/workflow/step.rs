//! Builds the requests of a step: the conversation, with `${ … }` resolved from earlier steps.

use std::sync::Arc;

use super::RunnerOptions;
use super::flow_state::FlowState;
use super::in_flight::SampleId;
use super::judge::{self, Order};
use super::step_state::SampleResult;
use crate::engine::{Message, Origin, Request, RequestOptions, Role, Sampling};
use crate::error::Result;
use crate::flow::{Context, Generate, Judge, Part, Resolver};
use crate::hash::sha256;

#[derive(Debug, Default)]
pub(crate) struct RequestBuilder {
    resolver: Resolver,
}

impl RequestBuilder {
    /// The request of a step that generates, for its first sample.
    ///
    /// # Errors
    /// Exit code 100 if an expression cannot be evaluated.
    pub(super) fn generate(
        &self,
        running: &FlowState,
        step: usize,
        generate: &Generate,
        options: &RunnerOptions,
    ) -> Result<Request> {
        let parent = match generate.context {
            Context::Append => running.graph.needs(step).first(),
            Context::Fresh => None,
        };
        let system = |system: &Arc<str>| Message {
            role: Role::System,
            content: system.to_string(),
        };
        let mut messages = match parent {
            Some(parent) => conversation(running.steps[*parent].item(0)),
            None => running.flow.system.iter().map(system).collect(),
        };
        messages.push(Message {
            role: Role::User,
            content: self.text(running, step, &generate.prompt)?,
        });
        let samples = generate.samples;
        Ok(Request {
            origin: origin(running, step, 0),
            messages: messages.into(),
            max_tokens: options.max_tokens.unwrap_or(generate.max_tokens),
            ignore_eos: options.ignore_eos,
            sampling: Sampling {
                temperature: generate.temperature,
                top_p: generate.top_p,
                top_k: generate.top_k,
                seed: sample_seed(running, step, (samples > 1).then_some(0), options),
            },
            options: RequestOptions::default(),
        })
    }

    /// A judge's request about one answer.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub(super) fn judge(
        &self,
        running: &FlowState,
        id: SampleId,
        judge: &Judge,
        order: Order,
        options: &RunnerOptions,
    ) -> Result<Request> {
        let SampleId { step, sample, .. } = id;
        let item = running.item_of(&judge.of, sample);
        let scored = item.and_then(|item| item.scored.as_ref()?.answer.as_deref());
        let answer = scored
            .or_else(|| item.map(|item| item.text.as_str()))
            .unwrap_or_default();
        let content = judge::prompt(
            &self.text(running, step, &judge.question)?,
            answer,
            &self.text(running, step, &judge.expected)?,
            order,
        );
        let request = 2 * sample + usize::from(order == Order::ExpectedFirst);
        Ok(Request {
            origin: origin(running, step, request),
            messages: Arc::new([Message {
                role: Role::User,
                content,
            }]),
            max_tokens: options.max_tokens.unwrap_or(judge.max_tokens),
            ignore_eos: options.ignore_eos,
            sampling: Sampling::default(),
            options: RequestOptions::default(),
        })
    }

    /// A text of a step, with its expressions resolved.
    ///
    /// # Errors
    /// As [`Self::generate`].
    pub(super) fn text(&self, running: &FlowState, step: usize, parts: &[Part]) -> Result<String> {
        // Prompts without expressions are common; this saves collecting what they could read.
        if parts.iter().all(|part| part.as_text().is_some()) {
            return Ok(parts.iter().filter_map(Part::as_text).collect());
        }
        self.resolver.message(parts, &running.visible(step))
    }
}

/// The messages of a conversation up to and including the answer.
fn conversation(item: Option<&SampleResult>) -> Vec<Message> {
    let Some(item) = item.filter(|item| !item.messages.is_empty()) else {
        return Vec::new();
    };
    let mut messages = item.messages.to_vec();
    messages.push(Message {
        role: Role::Assistant,
        content: item.text.clone(),
    });
    messages
}

fn origin(running: &FlowState, step: usize, sample: usize) -> Origin {
    Origin {
        flow: running.flow.flow,
        row: running.flow.row.clone(),
        step: running.flow.steps[step].id.clone(),
        sample: sample + 1,
    }
}

/// The seed of a step or of one of its samples. It depends on the run's seed, flow and step only, not on the
/// order in which steps run.
pub(super) fn sample_seed(
    running: &FlowState,
    step: usize,
    sample: Option<usize>,
    options: &RunnerOptions,
) -> u64 {
    let id = &running.flow.steps[step].id;
    seed(options.seed, running.flow.flow, id, sample)
}

fn seed(seed: u64, flow: usize, step: &str, sample: Option<usize>) -> u64 {
    let mut text = format!("{seed}/{flow}/{step}");
    if let Some(sample) = sample {
        text.push_str(&format!("/{}", sample + 1));
    }
    u64::from_str_radix(&sha256(text.as_bytes())[..16], 16).unwrap_or(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;
    use crate::flow::Flow;
    use crate::profile::{Activity, Span};
    use crate::stopwatch::{Moment, NoFence};
    use crate::workflow::tests::{flow_of, generate_of};

    fn request(flow: &Flow, said: Option<&str>, step: usize) -> Result<Request> {
        let now = Moment::now(&NoFence).expect("a clock");
        let mut running = FlowState::new(flow, now, Activity::root(Span::Flow)).expect("sound");
        if let Some(said) = said {
            let item = SampleResult {
                text: said.to_owned(),
                messages: Arc::new([Message {
                    role: Role::User,
                    content: "asked".to_owned(),
                }]),
                ..SampleResult::default()
            };
            running.steps[0].end(0, item);
        }
        let generate = flow.steps[step].generate().expect("it generates");
        RequestBuilder::default().generate(&running, step, generate, &RunnerOptions::default())
    }

    #[test]
    fn expressions_read_ended_steps_and_answers_are_not_evaluated() {
        let mut flow = flow_of(&[("plan-a", &[]), ("b", &["plan-a"])]);
        generate_of(&mut flow, 1).prompt = vec![
            Part::Text("${HOME} {{x}} ".to_owned()),
            Part::Expr("steps['plan-a'].text|upper".to_owned()),
        ];
        let request = request(&flow, Some("${y} {{z}}"), 1).expect("evaluates");
        assert_eq!(request.messages.len(), 1, "fresh: no history");
        // What a model wrote is data: nothing in it is evaluated.
        assert_eq!(request.messages[0].content, "${HOME} {{x}} ${Y} {{Z}}");
    }

    #[test]
    fn append_continues_the_conversation() {
        let mut flow = flow_of(&[("a", &[]), ("b", &["a"])]);
        generate_of(&mut flow, 1).context = Context::Append;
        let request = request(&flow, Some("said"), 1).expect("evaluates");
        let said: Vec<_> = request
            .messages
            .iter()
            .map(|message| message.content.as_str())
            .collect();
        assert_eq!(said, ["asked", "said", "prompt of b"]);
    }

    #[test]
    fn a_failing_expression_is_named() {
        let mut flow = flow_of(&[("a", &[])]);
        generate_of(&mut flow, 0).prompt = vec![Part::Expr("steps.zzz.text".to_owned())];
        let error = request(&flow, None, 0).expect_err("undefined");
        assert!(error.to_string().contains("${steps.zzz.text}"), "{error}");
        assert_eq!(error.exit(), Exit::FlowFailed);
    }

    #[test]
    fn seeds_differ_by_run_flow_step_and_sample() {
        let seeds = [
            seed(0, 1, "a", None),
            seed(1, 1, "a", None),
            seed(0, 2, "a", None),
            seed(0, 1, "b", None),
            seed(0, 1, "a", Some(0)),
            seed(0, 1, "a", Some(1)),
        ];
        for (index, seed) in seeds.iter().enumerate() {
            assert!(!seeds[..index].contains(seed));
        }
        assert_eq!(seed(0, 1, "a", None), seeds[0]);
    }
}
