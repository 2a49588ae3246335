//! Length limits of sequences, from the context and the memory for keys and values, and the messages
//! for sequences that exceed them.

use super::super::device::Device;
use super::super::kv::PAGE_TOKENS;
use super::super::model::{Limits, Model};
use crate::error::{Error, Exit, Result};
use crate::units::Bytes;

/// Limits of a sequence.
#[derive(Debug, Clone)]
pub(super) struct Lengths {
    /// Maximum tokens of a sequence: `CONTEXT`, or the model's context length.
    context: usize,
    /// The model's context length, if `CONTEXT` is smaller.
    model_context: Option<usize>,
    /// The model's context as text; says whether it is a sliding window.
    context_text: String,
    /// Memory for keys and values, in bytes.
    budget: usize,
    /// Bytes of keys and values per token.
    token_bytes: usize,
    /// Tokens that fit into the budget.
    tokens: usize,
    /// Weights in memory, in bytes, if known.
    weights: Option<usize>,
}

impl Lengths {
    /// # Errors
    /// Exit code 2 for a context larger than the model's, 3 if the memory does not hold a single page.
    pub(super) fn new(model: &dyn Model, limits: &Limits, device: &Device) -> Result<Self> {
        let spec = model.spec();
        limits.check(spec)?;
        let context = limits.context_of(spec);
        let page_bytes = model.page_bytes();
        let token_bytes = match page_bytes {
            Some(bytes) => bytes.div_ceil(PAGE_TOKENS),
            None => model.token_bytes(),
        };
        let full = match page_bytes {
            Some(bytes) => context.div_ceil(PAGE_TOKENS).saturating_mul(bytes),
            None => context.saturating_mul(token_bytes),
        };
        let budget = limits.budget(full, device);
        let tokens = match page_bytes {
            Some(bytes) => (budget / bytes.max(1)).saturating_mul(PAGE_TOKENS),
            None => budget / token_bytes.max(1),
        };
        let lengths = Self {
            context,
            model_context: (context < spec.context_length).then_some(spec.context_length),
            context_text: spec.context_text(),
            budget,
            token_bytes,
            tokens,
            weights: model
                .weight_bytes()
                .map(|weights| weights.layers + weights.head),
        };
        if tokens == 0 {
            let least = page_bytes.unwrap_or(token_bytes);
            return Err(Error::preflight(format!(
                "KV_CACHE_MB gives {} for keys and values, and the least that this model needs is {}",
                Bytes(budget as u64),
                Bytes(least as u64)
            ))
            .hint(format!("set KV_CACHE_MB={} or more", least.div_ceil(1 << 20))));
        }
        Ok(lengths)
    }

    /// Maximum tokens of a sequence by context.
    pub(super) fn context(&self) -> usize {
        self.context
    }

    /// Memory for keys and values, in bytes.
    pub(super) fn budget(&self) -> usize {
        self.budget
    }

    /// Maximum tokens of a sequence by context and memory.
    pub(super) fn tokens(&self) -> usize {
        self.context.min(self.tokens)
    }

    /// Bytes of keys and values for a sequence of `tokens` tokens, capped at the context.
    pub(super) fn bytes_of(&self, tokens: usize) -> usize {
        tokens.min(self.context).saturating_mul(self.token_bytes)
    }

    /// Checks that a prompt and one more token fit.
    ///
    /// # Errors
    /// Exit code 100, with the sizes and the setting that helps.
    pub(super) fn check_prompt(&self, prompt: usize) -> Result<()> {
        if prompt >= self.context {
            return Err(self.beyond_context(Exit::FlowFailed, prompt));
        }
        if prompt >= self.tokens {
            return Err(self.beyond_memory(Exit::FlowFailed, prompt, prompt + 1));
        }
        Ok(())
    }

    /// Checks that a prompt and `more` tokens after it, capped at the context, fit. A prompt beyond the
    /// model's own context only fails its own flow: no setting would help.
    ///
    /// # Errors
    /// Exit code 3, with the sizes and the setting that helps.
    pub(super) fn check_ahead(&self, prompt: usize, more: usize) -> Result<()> {
        if prompt >= self.context && self.model_context.is_some() {
            return Err(self.beyond_context(Exit::Preflight, prompt));
        }
        let prompt = prompt.min(self.context);
        let needed = prompt.saturating_add(more).min(self.context);
        if needed > self.tokens {
            return Err(self.beyond_memory(Exit::Preflight, prompt, needed));
        }
        Ok(())
    }

    fn beyond_context(&self, exit: Exit, prompt: usize) -> Error {
        let (context, hint) = match self.model_context {
            Some(model) => (
                format!("the context of {} tokens (CONTEXT)", self.context),
                format!("set a larger CONTEXT: the model has {model} tokens"),
            ),
            None => (
                format!("the model's context of {}", self.context_text),
                "let the template include fewer fixture files, or take a model with a longer context"
                    .to_owned(),
            ),
        };
        Error::new(
            exit,
            format!("the prompt of {prompt} tokens leaves no room in {context}"),
        )
        .hint(hint)
    }

    fn beyond_memory(&self, exit: Exit, prompt: usize, needed: usize) -> Error {
        let bytes = |bytes: usize| Bytes(bytes as u64);
        let beside = match self.weights {
            Some(weights) => format!("; the weights take {} besides", bytes(weights)),
            None => String::new(),
        };
        let pages = needed.div_ceil(PAGE_TOKENS) * PAGE_TOKENS;
        let least = pages.saturating_mul(self.token_bytes).div_ceil(1 << 20);
        let smaller = match self.tokens > prompt {
            true => format!(
                ", or generate less (MAX_TOKENS), or end sequences at {} tokens (CONTEXT={0})",
                self.tokens
            ),
            false => ", or let the template include fewer fixture files".to_owned(),
        };
        Error::new(
            exit,
            format!(
                "a prompt of {prompt} tokens and {} to generate need {} for keys and values ({} a token), \
                 and KV_CACHE_MB gives {}, which holds {} tokens{beside}",
                needed - prompt,
                bytes(pages.saturating_mul(self.token_bytes)),
                bytes(self.token_bytes),
                bytes(self.budget),
                self.tokens,
            ),
        )
        .hint(format!("set KV_CACHE_MB={least} or more{smaller}"))
    }

    /// Why a sequence of `tokens` tokens failed, with memory for the keys and values of `held` tokens.
    pub(super) fn outgrown(&self, tokens: usize, held: usize) -> String {
        let why = match held < self.tokens {
            true => {
                "this machine has no memory for more: run fewer things beside it, or set a smaller \
                     MAX_TOKENS"
                    .to_owned()
            }
            false => format!(
                "KV_CACHE_MB gives {}: set it larger, or MAX_TOKENS smaller",
                Bytes(self.budget as u64)
            ),
        };
        format!(
            "the sequence needs keys and values of {tokens} tokens ({} each), and there is memory for \
             those of {held}; {why}",
            Bytes(self.token_bytes as u64)
        )
    }
}
