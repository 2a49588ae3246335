//! The names of all spans, and what each of them is to the stage shares.

/// What a span's time means to the stage shares ([`super::stages`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A row of the table, and nothing else.
    Detail,
    /// A stage: it is at work while it is open, and an outer stage on the same thread is not.
    Work,
    /// A stage that is no work: it has a share only where no work is done.
    Wait,
    /// A phase of a request. The stage is at work while a pass computes such requests
    /// ([`super::pass`]); the span itself, which also lasts while the request's turn comes, is a
    /// row of the table.
    Phase,
}

macro_rules! spans {
    ($($(#[$doc:meta])* $span:ident = $name:literal, $kind:ident;)*) => {
        /// What is measured. The text of each is its name in the table.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum Span {
            $($(#[$doc])* $span,)*
        }

        impl Span {
            /// Every span, in the order of the program.
            pub const ALL: &'static [Self] = &[$(Self::$span),*];

            /// Its name in the table.
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
    /// The whole run: every other span of the main thread is in it.
    Run = "run", Detail;
    /// Finding out about the machine, as far as the run waits for it.
    Environment = "environment", Work;
    /// Reading template, suite and fixture; verifying or writing the flows.
    FlowExpansion = "flow_expansion", Work;
    /// Finding, fetching and checking the model file, or reading the script.
    LocateModel = "locate_model", Work;
    /// Starting the processes that run generated programs and check answers.
    PoolInit = "pool_init", Work;
    /// Opening the device, loading the model, one warm-up pass.
    EngineInit = "engine_init", Work;

    /// A workflow, from its first submission to its end.
    Flow = "flow", Detail;
    /// A step, from its submission to its last token.
    Step = "step", Detail;
    /// A step's prompt, with `${ … }` resolved, and its conversation through the chat template.
    PromptRendering = "prompt_rendering", Work;
    /// Text to tokens.
    Tokenise = "tokenise", Work;
    /// A request that is submitted and not admitted.
    QueueWait = "queue_wait", Wait;
    /// A request from its admission to its first token.
    Prefill = "prefill", Phase;
    /// A request from its first token to its last.
    Decode = "decode", Phase;
    /// Choosing who is computed in the next pass, and with which pages of KV memory.
    Schedule = "schedule", Work;
    /// Choosing the next token.
    Sample = "sample", Work;
    /// Tokens to text.
    Detokenise = "detokenise", Work;
    /// Waiting for the device.
    Synchronise = "synchronise", Work;

    /// From the request for a generated program's process to its first line.
    EvaluateStartUp = "evaluate.start_up", Work;
    /// A generated program, from its first line to its result or its kill.
    EvaluateRun = "evaluate.run", Work;
    /// Ending its process, and judging what it gave.
    EvaluateValidate = "evaluate.validate", Work;
    /// Checking an answer against the expected one: here, and where that does not do, in a process
    /// that math-verify is asked in.
    Verify = "verify", Work;
    /// Writing and printing what was measured.
    RecordIo = "record_io", Work;

    /// A forward pass of a model.
    Forward = "forward", Detail;
    /// A wait for answers that come from elsewhere: a script's latencies, a server.
    Wait = "wait", Detail;
    /// Token ids to rows of the embedding.
    Embedding = "embedding", Detail;
    /// Root mean square norms, and the residual additions before them.
    Norm = "norm", Detail;
    /// Rows to int8 blocks, for the next product.
    Quantise = "quantise", Detail;
    /// Products with weight matrices.
    Linear = "linear", Detail;
    /// Rotation of queries and keys by their positions.
    Rope = "rope", Detail;
    /// Keys and values into their cache.
    KvWrite = "kv_write", Detail;
    /// Attention proper: scores, softmax, weighted values.
    Attention = "attention", Detail;
    /// Gate and up of a feed-forward, and the activation: these follow one another part by part.
    Gate = "gate", Detail;
    /// The last norm and the product with the vocabulary.
    Head = "head", Detail;
}

impl Span {
    /// How many there are.
    pub(super) const COUNT: usize = Self::ALL.len();

    pub(super) const fn index(self) -> usize {
        self as usize
    }

    pub(super) const fn is_stage(self) -> bool {
        !matches!(self.kind(), Kind::Detail)
    }
}

// The stage shares keep the open stages in the bits of a u64.
const _: () = assert!(Span::COUNT <= 64);

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_fit_for_a_label() {
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
