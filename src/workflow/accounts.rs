//! Usage of the model by kind of step, its cost, and the limits at which a run stops.

use crate::config::{Limits, Prices};
use crate::engine::Completion;
use crate::record::StepRecord;
use crate::record::evaluation::UsageRecord;
use crate::stopwatch::Timer;

/// The limit that was reached, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached(pub String);

/// The usage of a run. Entering a request takes constant time.
#[derive(Debug, Clone)]
pub struct Accounts {
    model: String,
    prices: Option<Prices>,
    limits: Limits,
    opened: Timer,
    /// One record per model and kind of step.
    usage: Vec<UsageRecord>,
    tokens: u64,
    cost: f64,
}

impl Accounts {
    /// Starts the time of the deadline.
    pub fn new(model: impl Into<String>, prices: Option<Prices>, limits: Limits) -> Self {
        Self {
            model: model.into(),
            prices,
            limits,
            opened: Timer::start(),
            usage: Vec::new(),
            tokens: 0,
            cost: 0.0,
        }
    }

    /// Restarts the time of the deadline.
    pub fn begin(&mut self) {
        self.opened = Timer::start();
    }

    /// Sets the model that further requests go to.
    pub fn set_model(&mut self, model: &str) {
        model.clone_into(&mut self.model);
    }

    /// Adds a request that has ended.
    pub(crate) fn enter(&mut self, kind: &str, completion: &Completion) {
        let decoded = completion.decode_tokens();
        let (prompt, reused) = (completion.prompt_tokens, completion.reused_tokens);
        self.add(kind, prompt, reused, decoded);
    }

    /// Adds the request of a step that ended in an earlier segment of the run.
    pub fn enter_step(&mut self, step: &StepRecord) {
        if step.asks_a_model() {
            let tokens = &step.tokens;
            self.add(step.kind(), tokens.prompt, tokens.reused, tokens.decode);
        }
    }

    fn add(&mut self, kind: &str, prompt: usize, reused: usize, decoded: usize) {
        let same = |usage: &UsageRecord| usage.kind == kind && usage.model == self.model;
        let index = self.usage.iter().position(same).unwrap_or_else(|| {
            self.usage.push(UsageRecord {
                model: self.model.clone(),
                kind: kind.to_owned(),
                cost: self.prices.map(|_| 0.0),
                ..UsageRecord::default()
            });
            self.usage.len() - 1
        });
        let usage = &mut self.usage[index];
        usage.requests += 1;
        usage.prompt_tokens += prompt as u64;
        usage.reused_tokens += reused as u64;
        usage.decode_tokens += decoded as u64;
        self.tokens += (prompt + decoded) as u64;
        if let (Some(prices), Some(sum)) = (self.prices, &mut usage.cost) {
            let computed = prompt.saturating_sub(reused);
            let cost = (computed as f64 * prices.prompt
                + reused as f64 * prices.cached
                + decoded as f64 * prices.decode)
                / 1e6;
            *sum += cost;
            self.cost += cost;
        }
    }

    /// The first limit that has been reached, if any.
    pub(crate) fn reached(&self) -> Option<Reached> {
        let Limits {
            tokens,
            cost,
            deadline_s,
        } = self.limits;
        if let Some(most) = tokens.filter(|most| self.tokens >= *most) {
            let what = format!(
                "{} tokens, of at most {most} (--max-tokens-total)",
                self.tokens
            );
            return Some(Reached(what));
        }
        if let Some(most) = cost.filter(|most| self.cost >= *most) {
            let what = format!("a cost of {:.6}, of at most {most} (--max-cost)", self.cost);
            return Some(Reached(what));
        }
        if let Some(most) = deadline_s.filter(|most| self.opened.elapsed().as_secs_f64() >= *most) {
            let what = format!("its deadline, {most} s (--deadline)");
            return Some(Reached(what));
        }
        None
    }

    pub fn usage(&self) -> &[UsageRecord] {
        &self.usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Finish;

    fn completion(prompt: usize, reused: usize, decoded: usize) -> Completion {
        Completion {
            text: String::new(),
            tokens: vec![0; decoded],
            prompt_tokens: prompt,
            prefill_tokens: prompt - reused,
            reused_tokens: reused,
            drafted_tokens: 0,
            accepted_tokens: 0,
            finish: Finish::Stop,
            served: None,
        }
    }

    #[test]
    fn each_kind_of_step_has_its_own_usage_and_cost() {
        let prices = Prices {
            prompt: 2.0,
            cached: 1.0,
            decode: 10.0,
        };
        let limits = Limits {
            cost: Some(0.005),
            ..Limits::default()
        };
        let mut accounts = Accounts::new("m", Some(prices), limits);
        accounts.enter("generate", &completion(1000, 400, 100));
        accounts.enter("judge", &completion(10, 0, 1));
        assert_eq!(accounts.reached(), None);
        accounts.enter("generate", &completion(1000, 1000, 0));
        let [generate, judge] = accounts.usage() else {
            panic!("two kinds: {:?}", accounts.usage());
        };
        assert_eq!((generate.requests, generate.prompt_tokens), (2, 2000));
        assert_eq!(
            (generate.reused_tokens, generate.decode_tokens),
            (1400, 100)
        );
        let cost = (600.0 * 2.0 + 1400.0 + 100.0 * 10.0) / 1e6;
        assert!((generate.cost.expect("priced") - cost).abs() < 1e-12);
        assert_eq!(judge.requests, 1);
        accounts.enter("judge", &completion(1000, 0, 0));
        let reached = accounts.reached().expect("above 0.005").0;
        assert!(reached.contains("--max-cost"), "{reached}");
    }

    #[test]
    fn without_prices_there_is_no_cost() {
        let limits = Limits {
            tokens: Some(5),
            ..Limits::default()
        };
        let mut accounts = Accounts::new("m", None, limits);
        accounts.enter("generate", &completion(2, 0, 2));
        assert_eq!(accounts.reached(), None);
        accounts.enter("generate", &completion(1, 0, 0));
        assert!(
            accounts
                .reached()
                .expect("5 of 5")
                .0
                .contains("5 tokens, of at most 5")
        );
        assert_eq!(accounts.usage()[0].cost, None);
    }

    #[test]
    fn a_deadline_needs_no_request() {
        let limits = Limits {
            deadline_s: Some(0.0),
            ..Limits::default()
        };
        assert!(Accounts::new("m", None, limits).reached().is_some());
    }
}
