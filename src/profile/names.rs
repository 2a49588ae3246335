//! The names of all spans, and how each contributes to the stage shares.

/// How a span contributes to the stage shares ([`super::stages`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A row of the table only.
    Detail,
    /// A stage. It is active while it is open, and suspends the enclosing stage of the same thread.
    Work,
    /// A waiting stage: it has a share only while no work is done.
    Wait,
    /// A phase of a request. The stage is active while a pass computes such requests
    /// ([`super::pass`]). The span also covers the time until the next pass, and is a row of the
    /// table.
    Phase,
}

macro_rules! spans {
    ($($(#[$doc:meta])* $span:ident = $name:literal, $kind:ident;)*) => {
        /// A measured activity.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Span {
            $($(#[$doc])* $span,)*
        }

        impl Span {
            /// All spans, in program order.
            pub const ALL: &'static [Self] = &[$(Self::$span),*];

            /// Name in the table.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$span => $name,)*
                }
            }

            pub(super) const fn kind(self) -> Kind {
                match self {
                    $(Self::$span => Kind::$kind,)*
                }
            }
        }
    };
}

spans! {
    /// The whole run: contains all other spans of the main thread.
    Run = "run", Detail;
    /// Probing the machine, as far as it delays the run.
    Environment = "environment", Work;
    /// Reading template, suite and fixture; verifying or writing the flows.
    FlowExpansion = "flow_expansion", Work;
    /// Locating, downloading and checking the model file, or reading the script.
    LocateModel = "locate_model", Work;
    /// Starting the processes that run generated programs and check answers.
    PoolInit = "pool_init", Work;
    /// Opening the device, loading the model, and one warm-up pass.
    EngineInit = "engine_init", Work;

    /// A workflow, from its first submission to its end.
    Flow = "flow", Detail;
    /// A step, from its submission to its last token.
    Step = "step", Detail;
    /// Resolving `${ … }` in a step's prompt and applying the chat template to its conversation.
    PromptRendering = "prompt_rendering", Work;
    /// Text to tokens.
    Tokenise = "tokenise", Work;
    /// A submitted request that is not yet admitted.
    QueueWait = "queue_wait", Wait;
    /// A request, from admission to first token.
    Prefill = "prefill", Phase;
    /// A request, from first to last token.
    Decode = "decode", Phase;
    /// Selecting the requests of the next pass and their KV cache pages.
    Schedule = "schedule", Work;
    /// Sampling the next token.
    Sample = "sample", Work;
    /// Tokens to text.
    Detokenise = "detokenise", Work;
    /// Waiting for the device.
    Synchronise = "synchronise", Work;

    /// From requesting a process for a generated program to the program's first line.
    EvaluateStartUp = "evaluate.start_up", Work;
    /// A generated program, from its first line until it returns or is killed.
    EvaluateRun = "evaluate.run", Work;
    /// Stopping its process and judging its result.
    EvaluateValidate = "evaluate.validate", Work;
    /// Checking an answer against the expected one: in process, or else by math-verify in another
    /// process.
    Verify = "verify", Work;
    /// Writing and printing the results.
    RecordIo = "record_io", Work;

    /// A forward pass of a model.
    Forward = "forward", Detail;
    /// Waiting for answers from elsewhere: recorded latencies, or a server.
    Wait = "wait", Detail;
    /// Embedding lookup.
    Embedding = "embedding", Detail;
    /// RMS norms and the residual additions before them.
    Norm = "norm", Detail;
    /// Quantizing activations to int8 blocks for the next product.
    Quantise = "quantise", Detail;
    /// Matrix products with weights.
    Linear = "linear", Detail;
    /// Rotary position embedding of queries and keys.
    Rope = "rope", Detail;
    /// Writing keys and values to the KV cache.
    KvWrite = "kv_write", Detail;
    /// Attention: scores, softmax, weighted values.
    Attention = "attention", Detail;
    /// Gate and up projections of the feed-forward network and its activation, interleaved block by
    /// block.
    Gate = "gate", Detail;
    /// Final norm and output projection.
    Head = "head", Detail;
}

impl Span {
    pub(super) const COUNT: usize = Self::ALL.len();

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    pub(super) const fn is_stage(self) -> bool {
        !matches!(self.kind(), Kind::Detail)
    }
}

// The stage shares keep the open stages in a u64 bit mask.
const _: () = assert!(Span::COUNT <= 64);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_valid_as_labels() {
        let names: HashSet<_> = Span::ALL.iter().map(|span| span.name()).collect();
        assert_eq!(names.len(), Span::COUNT);
        for name in names {
            let fits = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
            assert!(name.chars().all(fits), "{name}");
        }
        for (index, span) in Span::ALL.iter().enumerate() {
            assert_eq!(span.index(), index);
        }
    }
}
