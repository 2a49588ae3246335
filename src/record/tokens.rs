//! Token counts of a step, and of the workflows and runs that steps add up to.

use std::ops::AddAssign;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::StepRecord;

/// Tokens that went through the model, or that a cache saved it. Records flatten it, so its names are
/// part of their layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TokenCounts {
    /// Prompt tokens.
    #[serde(rename = "prompt_tokens")]
    pub prompt: usize,
    /// Prompt tokens that were computed.
    #[serde(rename = "prefill_tokens")]
    pub prefill: usize,
    /// Prompt tokens taken from the prefix cache.
    #[serde(rename = "reused_tokens")]
    pub reused: usize,
    /// Generated tokens, without the end-of-sequence token.
    #[serde(rename = "decode_tokens")]
    pub decode: usize,
    /// Tokens proposed by speculative decoding.
    #[serde(rename = "drafted_tokens", default)]
    pub drafted: usize,
    /// Proposed tokens that were accepted; each saved a forward pass.
    #[serde(rename = "accepted_tokens", default)]
    pub accepted: usize,
}

impl TokenCounts {
    /// Tokens that went through the model.
    pub fn processed(&self) -> usize {
        self.prefill + self.decode
    }
}

impl AddAssign for TokenCounts {
    fn add_assign(&mut self, other: Self) {
        let Self {
            prompt,
            prefill,
            reused,
            decode,
            drafted,
            accepted,
        } = other;
        self.prompt += prompt;
        self.prefill += prefill;
        self.reused += reused;
        self.decode += decode;
        self.drafted += drafted;
        self.accepted += accepted;
    }
}

impl<'a> FromIterator<&'a StepRecord> for TokenCounts {
    fn from_iter<I: IntoIterator<Item = &'a StepRecord>>(steps: I) -> Self {
        let mut sum = Self::default();
        for step in steps {
            sum += step.tokens;
        }
        sum
    }
}

/// The layout of records that leave speculative decoding out: `serde(with)` for a flattened
/// [`TokenCounts`].
pub(super) mod without_drafts {
    use super::{Deserialize, Deserializer, Serialize, Serializer, TokenCounts};

    /// [`TokenCounts`] without `drafted` and `accepted`.
    #[derive(Serialize, Deserialize)]
    #[cfg_attr(test, derive(schemars::JsonSchema))]
    pub(crate) struct Layout {
        /// Prompt tokens of the steps.
        #[serde(default)]
        prompt_tokens: usize,
        /// Prompt tokens that were computed.
        #[serde(default)]
        prefill_tokens: usize,
        /// Prompt tokens taken from the prefix cache.
        #[serde(default)]
        reused_tokens: usize,
        /// Generated tokens.
        #[serde(default)]
        decode_tokens: usize,
    }

    pub(crate) fn serialize<S: Serializer>(
        tokens: &TokenCounts,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let layout = Layout {
            prompt_tokens: tokens.prompt,
            prefill_tokens: tokens.prefill,
            reused_tokens: tokens.reused,
            decode_tokens: tokens.decode,
        };
        layout.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<TokenCounts, D::Error> {
        let layout = Layout::deserialize(deserializer)?;
        Ok(TokenCounts {
            prompt: layout.prompt_tokens,
            prefill: layout.prefill_tokens,
            reused: layout.reused_tokens,
            decode: layout.decode_tokens,
            ..TokenCounts::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Totals, WorkflowRecord};

    const SIX: TokenCounts = TokenCounts {
        prompt: 1,
        prefill: 2,
        reused: 3,
        decode: 4,
        drafted: 5,
        accepted: 6,
    };

    #[test]
    fn counts_add_field_by_field() {
        let mut sum = SIX;
        sum += SIX;
        assert_eq!((sum.prompt, sum.prefill, sum.reused), (2, 4, 6));
        assert_eq!((sum.decode, sum.drafted, sum.accepted), (8, 10, 12));
        assert_eq!(sum.processed(), 12);
    }

    #[test]
    fn records_hold_the_counts_flat_and_in_place() {
        let totals = Totals {
            tokens: SIX,
            ..Totals::default()
        };
        let text = serde_json::to_string(&totals).expect("plain fields");
        let counts = "\"steps_done\":0,\"prompt_tokens\":1,\"prefill_tokens\":2,\"reused_tokens\":3,\
                      \"decode_tokens\":4,\"drafted_tokens\":5,\"accepted_tokens\":6,\"benchmark";
        assert!(text.contains(counts), "{text}");
        let read: Totals = serde_json::from_str(&text).expect("its own text");
        assert_eq!(read, totals);
    }

    #[test]
    fn workflows_leave_drafts_out() {
        let workflow = WorkflowRecord {
            tokens: SIX,
            ..WorkflowRecord::default()
        };
        let text = serde_json::to_string(&workflow).expect("plain fields");
        let counts = "\"error\":null,\"prompt_tokens\":1,\"prefill_tokens\":2,\"reused_tokens\":3,\
                      \"decode_tokens\":4,\"critical_path\"";
        assert!(text.contains(counts), "{text}");
        let read: WorkflowRecord = serde_json::from_str(&text).expect("its own text");
        let kept = TokenCounts {
            drafted: 0,
            accepted: 0,
            ..SIX
        };
        assert_eq!(read.tokens, kept);
    }
}
