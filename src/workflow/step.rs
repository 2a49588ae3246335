//! A step's request: its conversation, with `${ … }` resolved from the steps that have ended.

use std::collections::BTreeMap;

use super::RunnerOptions;
use crate::engine::{Message, Origin, Request, Role, Sampling};
use crate::error::Result;
use crate::flow::{Context, Flow, Resolver};
use crate::hash::sha256;

/// What a step left behind.
#[derive(Debug, Clone)]
pub(crate) struct Ended {
    /// The conversation, this step's answer included.
    pub(crate) messages: Vec<Message>,
    /// The answer.
    pub(crate) text: String,
}

/// Builds requests.
#[derive(Debug, Default)]
pub(crate) struct RequestBuilder {
    resolver: Resolver,
}

impl RequestBuilder {
    /// The request of step `index` of `flow`. `ended` holds, for each step of the flow, what it
    /// left behind, if it has ended; `parents` are the steps that this one needs.
    ///
    /// # Errors
    /// Exit code 100 where an expression cannot be evaluated.
    pub(crate) fn build(
        &self,
        flow: &Flow,
        index: usize,
        parents: &[usize],
        ended: &[Option<Ended>],
        options: &RunnerOptions,
    ) -> Result<Request> {
        let step = &flow.steps[index];
        let mut messages = match (step.context, parents) {
            (Context::Append, [parent, ..]) => ended[*parent]
                .as_ref()
                .map(|parent| parent.messages.clone())
                .unwrap_or_default(),
            _ => flow
                .system
                .iter()
                .map(|system| Message {
                    role: Role::System,
                    content: system.to_string(),
                })
                .collect(),
        };
        let answers: BTreeMap<&str, &str> = (flow.steps.iter().zip(ended))
            .filter_map(|(step, ended)| Some((step.id.as_str(), ended.as_ref()?.text.as_str())))
            .collect();
        messages.push(Message {
            role: Role::User,
            content: self.resolver.message(&step.prompt, &answers)?,
        });
        Ok(Request {
            origin: Origin {
                flow: flow.flow,
                row: flow.row.clone(),
                step: step.id.clone(),
            },
            messages,
            max_tokens: options.max_tokens.unwrap_or(step.max_tokens),
            ignore_eos: options.ignore_eos,
            sampling: Sampling {
                temperature: step.temperature,
                top_p: step.top_p,
                top_k: step.top_k,
                seed: step_seed(options.seed, flow.flow, &step.id),
            },
        })
    }
}

/// A step's own seed, from the run's seed, the flow and the step: independent of the order in
/// which steps run.
fn step_seed(seed: u64, flow: usize, step: &str) -> u64 {
    let digest = sha256(format!("{seed}/{flow}/{step}").as_bytes());
    u64::from_str_radix(&digest[..16], 16).unwrap_or(seed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Exit;
    use crate::flow::Part;
    use crate::workflow::tests::flow_of;

    fn ended(text: &str) -> Option<Ended> {
        Some(Ended {
            messages: vec![Message {
                role: Role::Assistant,
                content: text.to_owned(),
            }],
            text: text.to_owned(),
        })
    }

    #[test]
    fn expressions_see_the_steps_that_have_ended_and_text_stays_as_it_is() {
        let mut flow = flow_of(&[("plan-a", &[]), ("b", &["plan-a"])]);
        flow.steps[1].prompt = vec![
            Part::Text("${HOME} {{x}} ".to_owned()),
            Part::Expr("steps['plan-a'].text|upper".to_owned()),
        ];
        let builder = RequestBuilder::default();
        let options = RunnerOptions::default();
        let request = builder
            .build(&flow, 1, &[0], &[ended("${y} {{z}}"), None], &options)
            .expect("evaluates");
        assert_eq!(request.messages.len(), 1, "fresh: no history");
        // What a model wrote is data: nothing in it is evaluated.
        assert_eq!(request.messages[0].content, "${HOME} {{x}} ${Y} {{Z}}");
    }

    #[test]
    fn append_goes_on_with_the_conversation() {
        let mut flow = flow_of(&[("a", &[]), ("b", &["a"])]);
        flow.steps[1].context = Context::Append;
        let request = RequestBuilder::default()
            .build(
                &flow,
                1,
                &[0],
                &[ended("said"), None],
                &RunnerOptions::default(),
            )
            .expect("evaluates");
        let said: Vec<_> = request
            .messages
            .iter()
            .map(|message| message.content.as_str())
            .collect();
        assert_eq!(said, ["said", "prompt of b"]);
    }

    #[test]
    fn an_expression_that_fails_names_its_place() {
        let mut flow = flow_of(&[("a", &[])]);
        flow.steps[0].prompt = vec![Part::Expr("steps.zzz.text".to_owned())];
        let error = RequestBuilder::default()
            .build(&flow, 0, &[], &[None], &RunnerOptions::default())
            .expect_err("undefined");
        assert!(error.to_string().contains("${steps.zzz.text}"), "{error}");
        assert_eq!(error.exit(), Exit::FlowFailed);
    }

    #[test]
    fn seeds_differ_by_run_flow_and_step() {
        let seeds = [
            step_seed(0, 1, "a"),
            step_seed(1, 1, "a"),
            step_seed(0, 2, "a"),
            step_seed(0, 1, "b"),
        ];
        for (index, seed) in seeds.iter().enumerate() {
            assert!(!seeds[..index].contains(seed));
        }
        assert_eq!(step_seed(0, 1, "a"), seeds[0]);
    }
}
