//! Sources of completions. [`Engine`] is the seam that the whole program runs on: `local` (a model
//! in this process), `remote` (a server) and `scripted` (recorded answers, no model) stand behind it.

mod bench;
mod chat;
mod device;
mod kernels;
mod kv;
mod load;
mod local;
mod memory;
mod model;
mod model_spec;
mod remote;
mod sampler;
mod scheduler;
mod scripted;
mod tokenizer;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::remote::RemoteRecord;
use crate::stopwatch::Fence;

pub use bench::{BenchModel, measure_ceilings};
pub use device::{
    BUILD_HAS_CUDA, DeviceInfo, DeviceLoad, device_load, driver_version, preflight_gpu,
    prepare_process,
};
pub use load::hub::{
    DEFAULT_MODEL, ModelFile, ModelFormat, ModelSource, PinnedModel, Watch, digest, find_local,
    locate,
};
pub use local::{LocalEngine, LocalOptions};
pub use remote::{RemoteEngine, ServerAnswer, ServerReport, probe_server, wait_until_ready};
pub use scripted::{Script, ScriptedEngine};

/// What a model file says of itself: names and values, for people.
///
/// # Errors
/// Exit code 3 where the file is broken.
pub fn inspect_model(file: &ModelFile) -> Result<Vec<(&'static str, String)>> {
    model::inspect(&file.path)
}

/// A source of completions. Poll-driven: no thread or runtime of its own is assumed.
///
/// [`Fence::synchronize`] returns when the device has finished all that was queued.
pub trait Engine: Fence {
    /// What the engine is, for the record.
    fn info(&self) -> &EngineInfo;

    /// Whether a request of this size can be served at all: asked before any is submitted, about the
    /// longest that are known by then.
    ///
    /// # Errors
    /// Exit code 3, with the sizes and the setting that helps.
    fn check(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// Queues a request.
    ///
    /// # Errors
    /// Where it can be known at once that the request cannot be served: a prompt longer than the
    /// context, a chat template that refuses the conversation.
    fn submit(&mut self, request: Request) -> Result<RequestId>;

    /// Queues several samples of one request, each with a seed of its own in place of the request's. An
    /// engine that can computes the prompt once: then only the first has prefilled tokens, and the
    /// others reuse them all.
    ///
    /// # Errors
    /// As [`Self::submit`]; then none is queued.
    fn submit_samples(&mut self, request: Request, seeds: &[u64]) -> Result<Vec<RequestId>> {
        let mut ids = Vec::with_capacity(seeds.len());
        for (index, &seed) in seeds.iter().enumerate() {
            let mut sample = request.clone();
            sample.sampling.seed = seed;
            sample.origin.sample += index;
            match self.submit(sample) {
                Ok(id) => ids.push(id),
                Err(error) => {
                    ids.into_iter().for_each(|id| self.cancel(id));
                    return Err(error);
                }
            }
        }
        Ok(ids)
    }

    /// One forward pass over the active batch (or one wait for an answer), and what came of it; or,
    /// in place of a pass that would begin requests, that they start. With nothing to do it returns no events.
    ///
    /// # Errors
    /// Where the engine as a whole can go no further (a device error). A request that fails by
    /// itself is an [`EventKind::Failed`].
    fn poll(&mut self) -> Result<Vec<Event>>;

    /// Gives up a request that has not ended; later polls do not mention it.
    fn cancel(&mut self, id: RequestId);

    /// Empties the prefix cache, and turns it on (`reuse`) or off, where the engine has one: what
    /// comes next is measured as on an engine that was just loaded.
    ///
    /// # Errors
    /// While requests are in flight.
    fn restart(&mut self, reuse: bool) -> Result<()>;

    /// Checks before any flow begins that conversations of these kinds can be put to the model.
    ///
    /// # Errors
    /// Exit code 3 where the model's chat template cannot render one of them.
    fn try_conversations(&self, conversations: &[Conversation]) -> Result<()> {
        let _ = conversations;
        Ok(())
    }

    /// The text that the model is given for a conversation, special tokens and all; `None` where
    /// this engine does not make it.
    fn prompt_text(&self, messages: &[Message]) -> Option<String> {
        let _ = messages;
        None
    }

    /// What the user is to know of its start, beside what [`Self::info`] says.
    fn note(&self) -> Option<&str> {
        None
    }

    /// What went over the wire since the engine was started or this was last asked; `None` of an engine
    /// that calls no server.
    fn traffic(&mut self) -> Option<RemoteRecord> {
        None
    }
}

/// A prompt as people are shown it, with what its text does not show.
fn shown_prompt(text: String, held: usize) -> String {
    match held {
        0 => text,
        1 => format!("{text}\n(1 text of a special token in the messages stays ordinary text)"),
        _ => format!("{text}\n({held} texts of special tokens in the messages stay ordinary text)"),
    }
}

/// Why an engine does not restart.
fn restart_refused(in_flight: usize) -> Error {
    Error::flow(format!(
        "the engine cannot restart: {} in flight",
        crate::units::plural(in_flight, "request")
    ))
}

/// Names a request within one engine; given out in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// Who said it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Instructions that come before the conversation.
    System,
    /// The workflow's side.
    User,
    /// The model's side.
    Assistant,
}

impl Role {
    /// The name that chat templates know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who said it.
    pub role: Role,
    /// What was said.
    pub content: String,
}

/// A kind of conversation: who speaks in it. It ends with the user's turn, which the model answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conversation {
    /// Whether it begins with a system message.
    pub has_system: bool,
    /// The user's turns, at least 1.
    pub turns: usize,
}

impl Conversation {
    /// Who speaks, in order.
    fn roles(self) -> impl Iterator<Item = Role> {
        let system = self.has_system.then_some(Role::System);
        let before =
            std::iter::repeat_n([Role::User, Role::Assistant], self.turns.saturating_sub(1));
        system
            .into_iter()
            .chain(before.flatten())
            .chain([Role::User])
    }
}

/// How the next token is chosen. A temperature of 0 is greedy: the highest logit, the lowest token
/// id among equals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probabilities add up to this (1: all).
    pub top_p: f32,
    /// Keeps this many of the likeliest tokens (0: all).
    pub top_k: usize,
    /// Seeds the request's own generator: the draw does not depend on company.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_p: 1.0,
            top_k: 0,
            seed: 0,
        }
    }
}

/// One generation asked of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Which flow (from 1) and step asks: scripted answers are found by it, logs name it.
    pub origin: Origin,
    /// The conversation so far; the model answers it.
    pub messages: Arc<[Message]>,
    /// Most tokens to generate (at least 1).
    pub max_tokens: usize,
    /// Generate exactly `max_tokens`, past any end-of-sequence token.
    pub ignore_eos: bool,
    /// How tokens are chosen.
    pub sampling: Sampling,
}

/// The place in the workload that a request comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// The flow's number, from 1.
    pub flow: usize,
    /// The suite row's id.
    pub row: String,
    /// The step's id.
    pub step: String,
    /// Which of the step's samples, from 1.
    pub sample: usize,
}

/// What a poll tells of one request.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// The request.
    pub id: RequestId,
    /// What happened to it.
    pub kind: EventKind,
}

/// What happened to a request.
#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// The next forward pass will be the first that computes a token of it: its wait in the queue is
    /// over. Told by itself, before that pass; not told where the engine cannot know.
    Started,
    /// A further token was generated (the first one ends the time to first token).
    Token(u32),
    /// It begins again from its prompt: the tokens that were told before are void.
    Restarted,
    /// It has ended; its tokens came before, in [`EventKind::Token`] events.
    Finished(Completion),
    /// It cannot be ended, for this reason; the engine goes on with the others.
    Failed(String),
}

/// What came of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The generated text, special tokens left out.
    pub text: String,
    /// The generated tokens, the end-of-sequence token left out.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt as the model saw it.
    pub prompt_tokens: usize,
    /// Those of them that were computed for this request.
    pub prefill_tokens: usize,
    /// Those of them that were taken from the prefix cache.
    pub reused_tokens: usize,
    /// Tokens that were guessed ahead and checked; the generated ones are the same with and without.
    pub drafted_tokens: usize,
    /// Those of them that were right: passes saved.
    pub accepted_tokens: usize,
    /// Why it ended.
    pub finish: Finish,
    /// Of answers that came from a server only.
    pub served: Option<Served>,
}

impl Completion {
    /// How many tokens were generated, the end-of-sequence token left out as far as that is known: a
    /// server says how many, not which.
    pub fn decode_tokens(&self) -> usize {
        (self.served.as_ref()).map_or(self.tokens.len(), |served| served.decode_tokens)
    }
}

/// How an answer came from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Calls that were made, the last of which ended well.
    pub attempts: usize,
    /// Tokens that were generated, as far as the server tells; else the streamed chunks.
    pub decode_tokens: usize,
    /// Who counted: `usage`, `usage+tokenizer`, `chunks+usage`, `chunks`, `chunks+tokenizer`.
    pub counted_by: &'static str,
    /// Generated tokens that were thoughts, by the server's count, else the number of chunks with
    /// thoughts; `None` without any.
    pub reasoning_tokens: Option<usize>,
    /// Tokens that the server counted but did not stream; if it does not say how many, the least
    /// possible number.
    pub hidden_tokens: Option<usize>,
    /// Tokens in the streamed chunks, if known.
    pub streamed_tokens: Option<usize>,
    /// The answer was a single chunk of several tokens.
    pub one_piece: bool,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// `max_tokens`, or the end of the context.
    Length,
    /// The model called a tool; only of servers, with tools in `ENDPOINT_EXTRA`.
    ToolCalls,
}

impl Finish {
    /// As records have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// What an engine is, for the record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// `local`, `scripted` or `remote`.
    pub kind: String,
    /// The model's name, from its own metadata where it has one; of a server the name that it serves
    /// it by.
    pub model: String,
    /// Where the model was found; of a server its endpoint.
    pub model_path: Option<String>,
    /// SHA-256 of the GGUF file (64 hex digits), where it is known; of a split model that of its parts'
    /// digests, in hex, one a line.
    pub model_sha256: Option<String>,
    /// Architecture, as the file names it (`llama`, `qwen2`).
    pub architecture: Option<String>,
    /// The forward pass that runs it: `native`, `candle`, `generic`; `scripted`, `remote`.
    pub backend: String,
    /// Weights and arithmetic: `Q4_1 as f32`.
    pub weights: Option<String>,
    /// Most tokens of a sequence.
    pub context_length: usize,
    /// The device it runs on.
    pub device: DeviceInfo,
    /// What had to be assumed of a model file that does not say it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
