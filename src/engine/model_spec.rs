//! The sizes of a model, as the loaders read them and the forward passes use them.

/// The sizes of a decoder-only transformer, from the model file.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ModelSpec {
    /// `llama`, `qwen2`: GGUF's `general.architecture`.
    pub(crate) architecture: String,
    /// Transformer blocks.
    pub(crate) layers: usize,
    /// Width of the residual stream.
    pub(crate) hidden: usize,
    /// Width of the feed-forward network's inside.
    pub(crate) intermediate: usize,
    /// Query heads.
    pub(crate) heads: usize,
    /// Key and value heads; it divides `heads`.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head_size: usize,
    /// Tokens in the vocabulary.
    pub(crate) vocabulary: usize,
    /// Most tokens of a sequence.
    pub(crate) context_length: usize,
    /// The context that the files give, where the model attends to a sliding window that is smaller:
    /// [`Self::context_length`] is then the window.
    pub(crate) beyond_window: Option<usize>,
    /// Added under the root of the RMS norm.
    pub(crate) norm_epsilon: f64,
    /// Base of the rotary embedding's frequencies.
    pub(crate) rope_base: f32,
    /// Leading dimensions of a head that are rotated.
    pub(crate) rope_dimensions: usize,
}

impl ModelSpec {
    /// Numbers of a token's queries: of all heads together.
    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_size
    }

    /// Numbers of a token's keys, and of its values.
    pub(crate) fn key_width(&self) -> usize {
        self.kv_heads * self.head_size
    }

    /// Multiply-adds of a layer's products for a token, in the order of its computation after the
    /// attention: output; gate and up; down; query, key and value of the next layer.
    pub(crate) fn layer_products(&self) -> [usize; 4] {
        let (queries, keys) = (self.query_width(), self.key_width());
        [
            queries * self.hidden,
            2 * self.intermediate * self.hidden,
            self.intermediate * self.hidden,
            (queries + 2 * keys) * self.hidden,
        ]
    }

    /// The context, and what limits it: `4096 tokens (its sliding window; …)`.
    pub(crate) fn context_text(&self) -> String {
        let context = self.context_length;
        match self.beyond_window {
            None => format!("{context} tokens"),
            Some(all) => format!(
                "{context} tokens (its sliding window; longer sequences, up to {all}, are not supported)"
            ),
        }
    }

    /// Cuts the context to the sliding window that the model attends to, if it is smaller: within its
    /// window, a model with a sliding one is a model with none.
    pub(crate) fn within_window(mut self, window: Option<usize>) -> Self {
        if let Some(window) = window.filter(|window| (1..self.context_length).contains(window)) {
            self.beyond_window = Some(self.context_length);
            self.context_length = window;
        }
        self
    }

    /// Whether the sizes can be those of a model. The error is a fragment: "`model.gguf` …".
    pub(crate) fn check(&self) -> Result<(), String> {
        let Self {
            heads, kv_heads, ..
        } = *self;
        let even = |what: &str, size: usize, most: usize| match size {
            size if size > 0 && size <= most && size.is_multiple_of(2) => Ok(()),
            size => Err(format!(
                "has {what} of {size}, not an even number up to {most}"
            )),
        };
        let counts = [
            ("layers", self.layers, 4096),
            ("a hidden size", self.hidden, 1 << 20),
            ("a feed-forward size", self.intermediate, 1 << 22),
            ("heads", heads, 1 << 16),
            ("key and value heads", kv_heads, 1 << 16),
            ("a vocabulary", self.vocabulary, u32::MAX as usize),
            ("a context", self.context_length, 1 << 27),
        ];
        for (what, count, most) in counts {
            if count == 0 || count > most {
                return Err(format!("has {what} of {count}, not 1 to {most}"));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!(
                "has {heads} heads, which do not share {kv_heads} key and value heads evenly"
            ));
        }
        even("a head size", self.head_size, 1 << 16)?;
        even(
            "a rotated part of a head",
            self.rope_dimensions,
            self.head_size,
        )?;
        if !(self.norm_epsilon > 0.0 && self.norm_epsilon < 1.0) {
            return Err(format!("has a norm epsilon of {}", self.norm_epsilon));
        }
        if !(self.rope_base.is_finite() && self.rope_base > 0.0) {
            return Err(format!("has a rotary base of {}", self.rope_base));
        }
        Ok(())
    }
}
