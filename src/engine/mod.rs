//! Sources of completions behind one trait, [`Engine`]: `local` (a model in this process), `remote`
//! (a server) and `scripted` (recorded answers, no model).

mod bench;
mod chat;
mod cuda;
mod decoder;
mod device;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
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
mod stops;
mod tokenizer;

use std::sync::Arc;

use flowbench_kernels as kernels;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::record::remote::RemoteRecord;
use crate::record::shortage::MemoryShortage;
use crate::stopwatch::Fence;

pub use bench::BenchModel;
pub use device::{
    DeviceInfo, FoundGpu, GpuMeter, GpuReading, GpuSample, GpuWatch, driver_version, find_gpu,
    gpu_minimum, prepare_process, read_gpu,
};
pub use load::hub::{
    DEFAULT_MODEL, ModelFile, ModelFormat, ModelSource, PinnedModel, Watch, digest, find_local,
    locate,
};
pub use local::{LocalEngine, LocalOptions};
pub use remote::{RemoteEngine, ServerAnswer, ServerReport, probe_server, wait_until_ready};
pub use scripted::{Script, ScriptedEngine};

/// Describes a model file as label and value pairs for display.
///
/// # Errors
/// Exit code 3 if the file is corrupt.
pub fn inspect_model(file: &ModelFile) -> Result<Vec<(&'static str, String)>> {
    model::inspect(&file.path)
}

/// A source of completions, driven by polling. Callers need neither threads nor an async runtime.
///
/// [`Fence::synchronize`] returns once the device has finished all queued work.
pub trait Engine: Fence {
    fn info(&self) -> &EngineInfo;

    /// Checks whether a request of this size can be served at all. Called before any request is
    /// submitted, with the longest requests known at that point.
    ///
    /// # Errors
    /// Exit code 3, with the sizes and the setting to change.
    fn check(&self, _request: &Request) -> Result<()> {
        Ok(())
    }

    /// Queues a request.
    ///
    /// # Errors
    /// If the request can be rejected right away: the prompt exceeds the context, or the chat
    /// template rejects the conversation.
    fn submit(&mut self, request: Request) -> Result<RequestId>;

    /// Queues several samples of one request, one for each seed; `request`'s own seed is ignored.
    /// An engine that can share the prompt computes it once: the first sample reports it as
    /// prefilled, the others as reused.
    ///
    /// # Errors
    /// As [`Self::submit`]; on an error, no sample is queued.
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

    /// Runs one forward pass over the active batch, or waits once for a server's answer, and
    /// returns the events. If the pass would start requests, returns their [`EventKind::Started`]
    /// events instead, without running it. Returns no events if there is nothing to do.
    ///
    /// # Errors
    /// If the engine as a whole cannot continue, such as after a device error. A single request
    /// that fails is reported as [`EventKind::Failed`].
    fn poll(&mut self) -> Result<Vec<Event>>;

    /// The passes since the last call for which the device's memory was short.
    fn take_shortages(&mut self) -> Vec<MemoryShortage> {
        Vec::new()
    }

    /// Cancels an unfinished request. Later polls return no events for it.
    fn cancel(&mut self, id: RequestId);

    /// Empties the prefix cache, if there is one, and turns it on or off (`reuse`), so that the
    /// next measurement starts from the state of a freshly loaded engine.
    ///
    /// # Errors
    /// While requests are in flight.
    fn restart(&mut self, reuse: bool) -> Result<()>;

    /// Checks, before any flow starts, that the chat template can render conversations of these
    /// shapes.
    ///
    /// # Errors
    /// Exit code 3 if it cannot render one of them.
    fn try_conversations(&self, conversations: &[Conversation]) -> Result<()> {
        let _ = conversations;
        Ok(())
    }

    /// The prompt text of a conversation, including special tokens. `None` if the engine does not
    /// render it itself.
    fn prompt_text(&self, messages: &[Message]) -> Option<String> {
        let _ = messages;
        None
    }

    /// Whether a request's prompt can be plain text ([`RequestOptions::plain_prompt`]).
    fn takes_text(&self) -> bool {
        false
    }

    /// How many tokens a refused request's prompt has, and the most that would fit, if that is why it was
    /// refused.
    fn excess(&self, request: &Request) -> Option<(usize, usize)> {
        let _ = request;
        None
    }

    /// How busy the engine is now.
    fn occupancy(&self) -> Occupancy {
        Occupancy::default()
    }

    /// A note for the user at start-up, in addition to [`Self::info`].
    fn note(&self) -> Option<&str> {
        None
    }

    /// Network traffic since start-up or the previous call. `None` for engines that call no server.
    fn traffic(&mut self) -> Option<RemoteRecord> {
        None
    }
}

/// A prompt for display. `held` counts the special-token texts in messages that were not turned
/// into tokens.
fn shown_prompt(text: String, held: usize) -> String {
    match held {
        0 => text,
        1 => format!("{text}\n(1 special-token text in the messages is treated as ordinary text)"),
        _ => format!(
            "{text}\n({held} special-token texts in the messages are treated as ordinary text)"
        ),
    }
}

fn restart_refused(in_flight: usize) -> Error {
    Error::flow(format!(
        "the engine cannot restart: {} in flight",
        crate::units::plural(in_flight, "request")
    ))
}

/// Identifies a request within one engine; assigned in ascending order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    System,
    /// The workflow.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role's name in chat templates.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    pub role: Role,
    pub content: String,
}

/// The shape of a conversation, without its text. It ends with a user turn, which the model
/// answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Conversation {
    pub has_system: bool,
    /// Number of user turns, at least 1.
    pub turns: usize,
}

impl Conversation {
    /// Roles in order.
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

/// Sampling parameters. A temperature of 0 is greedy: the highest logit, and the lowest token id
/// among equals.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probabilities sum to this (1: all).
    pub top_p: f32,
    /// Keeps this many of the most likely tokens (0: all).
    pub top_k: usize,
    /// Seeds the request's own generator, so that other requests in the batch do not affect its
    /// tokens.
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

/// A generation request.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Scripted answers are looked up by it, and logs name it.
    pub origin: Origin,
    /// The conversation so far; the model generates the next turn.
    pub messages: Arc<[Message]>,
    /// Upper bound on the generated tokens, at least 1.
    pub max_tokens: usize,
    /// Generate exactly `max_tokens`, ignoring end-of-sequence tokens.
    pub ignore_eos: bool,
    pub sampling: Sampling,
    pub options: RequestOptions,
}

/// What only some callers ask of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestOptions {
    /// The answer ends before the first of these strings, with [`Finish::Stop`]. None may be empty.
    pub stop: Arc<[String]>,
    /// Report the text as it is generated ([`EventKind::Text`]).
    pub stream_text: bool,
    /// The prompt is the content of the only message, without a chat template. Texts of special tokens in it
    /// become special tokens. Only for engines with [`Engine::takes_text`].
    pub plain_prompt: bool,
}

/// How busy an engine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Occupancy {
    /// Requests that were submitted and have not ended.
    pub requests: usize,
    /// Those of them that no pass has computed a token of.
    pub waiting: usize,
    /// Pages of keys and values that unfinished requests hold.
    pub kv_pages: usize,
    /// Pages that there are at most; 0 if the engine has none.
    pub kv_pages_limit: usize,
}

/// Where in the workload a request comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Origin {
    /// Flow number, from 1.
    pub flow: usize,
    /// Id of the suite row.
    pub row: String,
    /// Id of the step.
    pub step: String,
    /// Sample number within the step, from 1.
    pub sample: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    pub id: RequestId,
    pub kind: EventKind,
}

#[derive(Debug, Clone, PartialEq)]
pub enum EventKind {
    /// The next forward pass is the first to compute a token of this request, so its queue wait is
    /// over. Reported alone, before that pass. Not reported by engines that cannot know.
    Started,
    /// A token was generated. The first one ends the time to first token.
    Token(u32),
    /// Text that is certainly part of the answer, after the token that completed it. Only with
    /// [`RequestOptions::stream_text`]. All texts of a request concatenate to [`Completion::text`].
    Text(String),
    /// The request starts over from its prompt: discard the tokens and texts reported so far.
    Restarted,
    /// The request is complete. Its tokens were already reported as [`EventKind::Token`].
    Finished(Completion),
    /// The request failed, with the reason. Other requests continue.
    Failed(String),
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Completion {
    /// The generated text without special tokens.
    pub text: String,
    /// The generated tokens without the end-of-sequence token.
    pub tokens: Vec<u32>,
    /// Prompt tokens as the model saw them.
    pub prompt_tokens: usize,
    /// Prompt tokens computed for this request.
    pub prefill_tokens: usize,
    /// Prompt tokens taken from the prefix cache.
    pub reused_tokens: usize,
    /// Speculatively drafted tokens. The output is the same with and without drafting.
    pub drafted_tokens: usize,
    /// Drafted tokens that were accepted: the passes saved.
    pub accepted_tokens: usize,
    pub finish: Finish,
    /// Set only for answers from a server.
    pub served: Option<Served>,
}

impl Completion {
    /// Number of generated tokens. The end-of-sequence token is not counted where that is known: a
    /// server reports a count only.
    pub fn decode_tokens(&self) -> usize {
        (self.served.as_ref()).map_or(self.tokens.len(), |served| served.decode_tokens)
    }
}

/// Details of an answer from a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Number of calls; the last one succeeded.
    pub attempts: usize,
    /// Generated tokens as reported by the server, otherwise the number of streamed chunks.
    pub decode_tokens: usize,
    /// Source of the count: `usage`, `usage+tokenizer`, `chunks+usage`, `chunks`,
    /// `chunks+tokenizer`.
    pub counted_by: &'static str,
    /// Reasoning tokens as reported by the server, otherwise the number of chunks with reasoning;
    /// `None` if there are none.
    pub reasoning_tokens: Option<usize>,
    /// Tokens that the server counted but did not stream; a lower bound if it does not report their
    /// number.
    pub hidden_tokens: Option<usize>,
    /// Tokens in the streamed chunks, if known.
    pub streamed_tokens: Option<usize>,
    /// Whether the answer came as a single chunk of several tokens.
    pub one_piece: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its turn.
    Stop,
    /// `max_tokens` or the end of the context was reached.
    Length,
    /// The model called a tool. Only from servers, if `ENDPOINT_EXTRA` defines tools.
    ToolCalls,
}

impl Finish {
    /// The name used in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

/// Describes an engine, as recorded in a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineInfo {
    /// `local`, `scripted` or `remote`.
    pub kind: String,
    /// The model's name: from its metadata if it has one, or the name under which a server offers
    /// it.
    pub model: String,
    /// The model's path, or the server's endpoint.
    pub model_path: Option<String>,
    /// SHA-256 of the GGUF file (64 hex digits), if known. For a split model, the SHA-256 of its
    /// parts' hex digests, one per line.
    pub model_sha256: Option<String>,
    /// Architecture as named in the file (`llama`, `qwen2`).
    pub architecture: Option<String>,
    /// Forward pass implementation (`cuda`, `native`, `candle`, `generic`), or `scripted` or `remote`.
    pub backend: String,
    /// Weight format and arithmetic, such as `Q4_1 as f32`.
    pub weights: Option<String>,
    /// Upper bound on a sequence's length in tokens.
    pub context_length: usize,
    pub device: DeviceInfo,
    /// Most tokens that a forward pass computes, and most sequences in it; `null` unless the engine computes
    /// them in this process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pass_tokens: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_sequences: Option<usize>,
    /// Part of the engine's start in which the driver compiled the kernels for its card, in
    /// milliseconds. The driver keeps the result in a cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jit_ms: Option<f64>,
    /// Assumptions made where the model file gives no information.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
