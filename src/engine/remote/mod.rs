//! An engine that sends its requests to a server with OpenAI's API.
//!
//! Each request in flight has a thread that makes one HTTP call ([`call`]) and reports over a
//! channel. Everything else (admission, timeouts, retries, counting) happens in
//! [`RemoteEngine::poll`], on one thread. A call that times out or is canceled has its connection
//! shut down.
//!
//! # Tokens
//!
//! A server sends text and, at the end, its number of tokens. So each streamed chunk is one token
//! event, counts are the server's, and the tokens of a [`Completion`] are hashes of the words in
//! its text, as for recorded answers. Equal texts have equal hashes, however they were streamed.

mod answer;
mod call;
mod connection;
mod ending;
mod failure;
#[cfg(any(test, fuzzing))]
pub(in crate::engine) mod fuzzing;
mod json;
mod models;
mod network;
mod probe;
mod ready;
mod reason;
mod request;
mod retry;
mod sse;
mod tls;
mod tokens;
mod traffic;
mod usage;
mod wire;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use ureq::Agent;

use super::device::DeviceInfo;
use super::scripted::{token_id, word_ids};
use super::{
    Completion, Conversation, Engine, EngineInfo, Event, EventKind, Message, Occupancy, Origin,
    Request, RequestId, Served, restart_refused,
};
use crate::config::{EndpointApi, RemoteConfig};
use crate::error::Result;
use crate::profile::{self, Activity, Count, PassTokens, Span};
use crate::record::remote::RemoteRecord;
use crate::stopwatch::{Fence, Timer};

use answer::{End, Part};
use call::{Caller, News, What};
use failure::{Cause, Failure};
use network::Network;
pub use probe::{Answer as ServerAnswer, ServerReport, probe as probe_server};
pub use ready::wait as wait_until_ready;
use request::Sent;
use retry::RetryDecision;
use tokens::{Counter, LocalTokens, Prompt};
use traffic::{Traffic, Usage};

/// Upper bound on how long a poll blocks, so that its caller can do other work.
const POLL: Duration = Duration::from_millis(20);

/// Upper bound on concurrent calls: each has a thread and a socket.
const MOST_CALLS: usize = 1024;

/// How long a new request waits for a connection whose answer is complete and whose stream is about
/// to end. Opening another connection would take longer.
const SOON_FREE: Duration = Duration::from_millis(5);

/// How long a stream may go on after its answer is complete.
const DRAIN: Duration = Duration::from_secs(2);

/// Runs a limited number of requests at once; the others are queued.
pub struct RemoteEngine {
    info: EngineInfo,
    config: RemoteConfig,
    network: Arc<Network>,
    caller: Arc<Caller>,
    tokens: Option<Arc<LocalTokens>>,
    counter: Option<Counter>,
    /// Maximum number of concurrent calls.
    places: usize,
    next_id: u64,
    next_attempt: u64,
    open: BTreeMap<RequestId, Open>,
    /// Connections without a request.
    idle: Vec<Agent>,
    /// Connections whose answer is complete but whose stream has not ended, by attempt.
    draining: HashMap<u64, (Agent, Timer)>,
    news: Receiver<News>,
    teller: Sender<News>,
    /// Events for the next poll.
    early: Vec<Event>,
    traffic: Traffic,
    /// A note on the startup, for the user.
    note: Option<String>,
}

/// A request that has not finished.
struct Open {
    origin: Origin,
    body: Arc<Vec<u8>>,
    seed: u64,
    /// Whether texts are reported.
    stream_text: bool,
    /// When the first attempt started.
    begun: Option<Timer>,
    attempts: usize,
    state: State,
    /// The current span: waiting, before the first token, or after it.
    phase: Activity,
}

enum State {
    /// Queued; after a failure, for some time at least.
    Waiting { since: Timer, at_least: Duration },
    /// A call is in flight.
    Calling(Attempt),
}

struct Attempt {
    number: u64,
    agent: Agent,
    started: Timer,
    last_token: Option<Timer>,
    chunks: usize,
    text: String,
    /// What the server sent besides the answer, as the end of an error message.
    beside: String,
}

impl Open {
    /// The origin, the number of attempts, and the call in flight.
    fn into_attempt(self) -> Option<((Origin, usize), Attempt)> {
        match self.state {
            State::Calling(attempt) => Some(((self.origin, self.attempts), attempt)),
            State::Waiting { .. } => None,
        }
    }

    fn attempt(&mut self, number: u64) -> Option<&mut Attempt> {
        match &mut self.state {
            State::Calling(attempt) if attempt.number == number => Some(attempt),
            _ => None,
        }
    }

    /// Time until the request may start; `None` while a call is in flight.
    fn due_in(&self) -> Option<Duration> {
        match &self.state {
            State::Waiting { since, at_least } => Some(at_least.saturating_sub(since.elapsed())),
            State::Calling(_) => None,
        }
    }
}

impl RemoteEngine {
    /// Connects to the server and finds its model. `model` is the name to request; without one, it
    /// is the only model that the server lists. At most `places` calls are made at once, and never
    /// more than 1024.
    ///
    /// # Errors
    /// Exit code 3 if the server cannot be reached, if it lists no models and none is named, or if
    /// the tokenizer or a trusted certificate cannot be read. Exit code 2 if the server serves
    /// several models and none is named.
    pub fn connect(config: &RemoteConfig, model: Option<&str>, places: usize) -> Result<Self> {
        let tokens = match &config.server.tokenizer {
            None => None,
            Some(path) => Some(Arc::new(LocalTokens::read(path)?)),
        };
        let counter = match &tokens {
            None => None,
            Some(tokens) => Some(Counter::start(Arc::clone(tokens))?),
        };
        let network = Arc::new(Network::new(config)?);
        let caller = Caller::new(config, Arc::clone(&network));
        let agent = network.agent();
        let found = models::find(&caller, &agent, config, model)?;
        let model = found.model;
        let (teller, news) = channel();
        Ok(Self {
            info: EngineInfo {
                kind: "remote".to_owned(),
                model: model.id,
                model_path: Some(config.server.endpoint.to_string()),
                model_sha256: None,
                architecture: None,
                backend: "remote".to_owned(),
                weights: None,
                context_length: model.max_model_len.unwrap_or(usize::MAX),
                device: DeviceInfo::none(),
                pass_tokens: None,
                max_sequences: None,
                jit_ms: None,
                notes: tokens
                    .as_ref()
                    .map_or_else(Vec::new, |tokens| tokens.notes().to_vec()),
            },
            config: config.clone(),
            network,
            caller: Arc::new(caller),
            tokens,
            counter,
            places: places.clamp(1, MOST_CALLS),
            next_id: 0,
            next_attempt: 0,
            open: BTreeMap::new(),
            idle: vec![agent],
            draining: HashMap::new(),
            news,
            teller,
            early: Vec::new(),
            traffic: Traffic::new(found.attempts),
            note: found.note,
        })
    }

    fn calls(&self) -> usize {
        let calling = |open: &&Open| matches!(open.state, State::Calling(_));
        self.open.values().filter(calling).count()
    }

    /// A connection; `None` if one is about to become free.
    fn agent(&mut self) -> Option<Agent> {
        if let Some(agent) = self.idle.pop() {
            return Some(agent);
        }
        let soon = |(_, since): &(Agent, Timer)| since.elapsed() < SOON_FREE;
        if self.draining.values().any(soon) {
            return None;
        }
        Some(self.network.agent())
    }

    /// Starts the calls that are due, the oldest requests first.
    fn begin(&mut self, events: &mut Vec<Event>) {
        let mut room = self.places.saturating_sub(self.calls());
        let due = |(id, open): (&RequestId, &Open)| (open.due_in()?.is_zero()).then_some(*id);
        let due: Vec<RequestId> = self.open.iter().filter_map(due).collect();
        for id in due {
            if room == 0 {
                return;
            }
            let Some(agent) = self.agent() else {
                return;
            };
            room -= 1;
            if let Err(failure) = self.call(id, agent) {
                self.failed(id, &failure, events);
            }
        }
    }

    /// Starts an attempt of a waiting request.
    fn call(&mut self, id: RequestId, agent: Agent) -> std::result::Result<(), Failure> {
        let Some(open) = self.open.get_mut(&id) else {
            return Ok(());
        };
        let number = self.next_attempt;
        self.next_attempt += 1;
        open.attempts += 1;
        self.traffic.attempt(open.attempts);
        let now = Timer::start();
        open.begun.get_or_insert(now);
        open.phase.next(Span::Prefill);
        let (caller, calling) = (Arc::clone(&self.caller), agent.clone());
        let (body, teller) = (Arc::clone(&open.body), self.teller.clone());
        thread::Builder::new()
            .name("remote-call".to_owned())
            .spawn(move || caller.run(&calling, &body, id, number, &teller))
            .map_err(|error| {
                let message = format!("failed to start a thread for the call: {error}");
                Failure::new(Cause::Refused, message)
            })?;
        open.state = State::Calling(Attempt {
            number,
            agent,
            started: now,
            last_token: None,
            chunks: 0,
            text: String::new(),
            beside: String::new(),
        });
        Ok(())
    }

    /// Handles a report from a call's thread. Reports of abandoned calls are ignored.
    fn take(&mut self, news: News, events: &mut Vec<Event>) {
        if let What::Drained = news.what {
            if let Some((agent, _)) = self.draining.remove(&news.attempt) {
                self.idle.push(agent);
            }
            return;
        }
        let id = news.id;
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        let stream_text = open.stream_text;
        let Some(attempt) = open.attempt(news.attempt) else {
            return;
        };
        match news.what {
            What::Chunks(parts) => {
                let is_first = attempt.chunks == 0;
                attempt.chunks += parts.len();
                attempt.last_token = Some(Timer::start());
                for Part { text, thought } in parts {
                    let piece = if text.is_empty() { &thought } else { &text };
                    let kind = EventKind::Token(token_id(piece));
                    attempt.text.push_str(&text);
                    events.push(Event { id, kind });
                    if stream_text && !text.is_empty() {
                        let kind = EventKind::Text(text);
                        events.push(Event { id, kind });
                    }
                }
                if is_first {
                    open.phase.next(Span::Decode);
                }
            }
            What::Beside(line) => attempt.beside = line,
            What::Done(end) => {
                let ended = self.open.remove(&id);
                if let Some((open, attempt)) = ended.and_then(Open::into_attempt) {
                    if stream_text && !end.tail.is_empty() {
                        let kind = EventKind::Text(end.tail.to_owned());
                        events.push(Event { id, kind });
                    }
                    let completion = self.completion(id, open, attempt, end);
                    let kind = EventKind::Finished(completion);
                    events.push(Event { id, kind });
                }
            }
            What::Failed(failure) => {
                self.idle.push(attempt.agent.clone());
                self.failed(id, &failure, events);
            }
            What::Drained => {}
        }
    }

    /// Builds the completion of a request whose answer is complete.
    fn completion(
        &mut self,
        id: RequestId,
        (origin, attempts): (Origin, usize),
        mut attempt: Attempt,
        end: End,
    ) -> Completion {
        attempt.text.push_str(end.tail);
        let draining = (attempt.agent, Timer::start());
        self.draining.insert(attempt.number, draining);
        let counts = end.counts;
        let known_prompt = match &self.counter {
            Some(counter) if counts.prompt.is_none() => counter.prompt_of(id),
            _ => None,
        };
        if let Some(counter) = &self.counter
            && (counts.prompt.is_some() || counts.decode.is_some())
        {
            counter.answer(id, attempt.text.clone());
            let usage = Usage {
                prompt: counts.prompt,
                answer: end.answer_tokens(),
            };
            self.traffic.compare_later(id, origin, usage);
        }
        let counted_by = match (counts.prompt, counts.decode, known_prompt) {
            (Some(_), Some(_), _) | (None, Some(_), None) => "usage",
            (None, Some(_), Some(_)) => "usage+tokenizer",
            (Some(_), None, _) => "chunks+usage",
            (None, None, Some(_)) => "chunks+tokenizer",
            (None, None, None) => "chunks",
        };
        let prompt = counts.prompt.or(known_prompt).unwrap_or(0);
        let cached = counts.cached.unwrap_or(0);
        profile::count(Count::Prefilled, prompt - cached);
        let uncounted = counts.decode.is_none() || prompt == 0;
        self.traffic.record.without_usage += usize::from(uncounted);
        let streamed = end.streamed(attempt.chunks);
        Completion {
            tokens: word_ids(&attempt.text),
            text: attempt.text,
            prompt_tokens: prompt,
            prefill_tokens: prompt - cached,
            reused_tokens: cached,
            drafted_tokens: 0,
            accepted_tokens: 0,
            finish: end.finish,
            served: Some(Served {
                attempts,
                decode_tokens: counts.decode.unwrap_or(attempt.chunks),
                counted_by,
                reasoning_tokens: (counts.reasoning)
                    .or(Some(end.thoughts).filter(|thoughts| *thoughts > 0)),
                hidden_tokens: streamed.hidden,
                streamed_tokens: streamed.tokens,
                one_piece: streamed.one_piece,
            }),
        }
    }

    /// Retries or fails a request after a failed attempt.
    fn failed(&mut self, id: RequestId, failure: &Failure, events: &mut Vec<Event>) {
        let Some(open) = self.open.get_mut(&id) else {
            return;
        };
        let spent = open.begun.map_or(Duration::ZERO, Timer::elapsed);
        let chunks = match &open.state {
            State::Calling(attempt) => attempt.chunks,
            State::Waiting { .. } => 0,
        };
        self.traffic.failed(failure.cause, chunks);
        let policy = &self.config.retry;
        match retry::decide(policy, failure, open.attempts, spent, open.seed) {
            RetryDecision::Again(at_least) => {
                self.traffic.waits(at_least);
                open.phase.next(Span::QueueWait);
                open.state = State::Waiting {
                    since: Timer::start(),
                    at_least,
                };
                if chunks > 0 {
                    let kind = EventKind::Restarted;
                    events.push(Event { id, kind });
                }
            }
            RetryDecision::GiveUp(reason) => {
                self.traffic.record.failed_requests += 1;
                self.open.remove(&id);
                let kind = EventKind::Failed(reason);
                events.push(Event { id, kind });
            }
        }
    }

    /// Ends the calls that have timed out.
    fn expire(&mut self, events: &mut Vec<Event>) {
        let policy = self.config.retry;
        let late = |(id, open): (&RequestId, &Open)| {
            let State::Calling(attempt) = &open.state else {
                return None;
            };
            let message = if open.begun?.elapsed() >= policy.request() {
                format!(
                    "the request did not finish within {} s (REQUEST_TIMEOUT)",
                    policy.request_timeout_s
                )
            } else if let Some(last) = attempt.last_token {
                (last.elapsed() >= policy.token()).then(|| {
                    format!(
                        "no further token arrived within {} s (TOKEN_TIMEOUT)",
                        policy.token_timeout_s
                    )
                })?
            } else {
                (attempt.started.elapsed() >= policy.first_token()).then(|| {
                    format!(
                        "no token arrived within {} s (FIRST_TOKEN_TIMEOUT)",
                        policy.first_token_timeout_s
                    )
                })?
            };
            Some((*id, attempt.agent.clone(), message + &attempt.beside))
        };
        let late: Vec<(RequestId, Agent, String)> = self.open.iter().filter_map(late).collect();
        for (id, agent, message) in late {
            agent.shutdown();
            self.failed(id, &Failure::new(Cause::Timeout, message), events);
        }
        let lasts = |(agent, since): &(Agent, Timer)| {
            let goes_on = since.elapsed() < DRAIN;
            if !goes_on {
                agent.clone().shutdown();
            }
            goes_on
        };
        self.draining.retain(|_, draining| lasts(draining));
    }

    /// How long a poll may block.
    fn wait(&self) -> Duration {
        let room = self.calls() < self.places;
        let due = self.open.values().filter_map(Open::due_in).min();
        match due.filter(|_| room) {
            // The next request waits for a connection that is about to become free.
            Some(due) if due.is_zero() => Duration::from_millis(1),
            Some(due) => due.min(POLL),
            None => POLL,
        }
    }

    /// The requests that the engine is waiting for.
    fn pass(&self) -> PassTokens {
        let mut pass = PassTokens::default();
        for open in self.open.values() {
            if let State::Calling(attempt) = &open.state {
                pass.sequences += 1;
                match attempt.chunks {
                    0 => pass.prefill_tokens += 1,
                    _ => pass.decode_tokens += 1,
                }
            }
        }
        pass
    }
}

impl Fence for RemoteEngine {
    /// There is no work on a device to wait for.
    fn synchronize(&self) -> Result<()> {
        Ok(())
    }
}

impl Engine for RemoteEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn submit(&mut self, request: Request) -> Result<RequestId> {
        let tokens = self.tokens.as_deref();
        let outgoing = request::outgoing(&request, &self.info.model, &self.config, tokens)?;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.traffic.record.requests += 1;
        self.open.insert(
            id,
            Open {
                origin: request.origin,
                body: Arc::new(outgoing.body),
                seed: request.sampling.seed,
                stream_text: request.options.stream_text,
                begun: None,
                attempts: 0,
                state: State::Waiting {
                    since: Timer::start(),
                    at_least: Duration::ZERO,
                },
                phase: Activity::in_scope(Span::QueueWait),
            },
        );
        // If there is room, start the call now instead of in the next poll.
        if self.calls() < self.places
            && let Some(agent) = self.agent()
            && let Err(failure) = self.call(id, agent)
        {
            let mut early = std::mem::take(&mut self.early);
            self.failed(id, &failure, &mut early);
            self.early = early;
        }
        if let Some(counter) = &self.counter {
            let prompt = match outgoing.prompt {
                Some(Sent::Tokens(ids)) => Prompt::Tokens(ids.len()),
                _ => Prompt::Chat(request.messages),
            };
            counter.prompt(id, prompt);
        }
        Ok(id)
    }

    /// Blocks for at most 20 ms.
    fn poll(&mut self) -> Result<Vec<Event>> {
        let mut events = std::mem::take(&mut self.early);
        self.begin(&mut events);
        if events.is_empty() && !self.open.is_empty() {
            let pass = profile::pass(Span::Wait, || self.pass());
            let news = self.news.recv_timeout(self.wait());
            drop(pass);
            if let Ok(news) = news {
                self.take(news, &mut events);
            }
        }
        while let Ok(news) = self.news.try_recv() {
            self.take(news, &mut events);
        }
        self.expire(&mut events);
        Ok(events)
    }

    fn cancel(&mut self, id: RequestId) {
        if let Some(open) = self.open.remove(&id)
            && let State::Calling(attempt) = open.state
        {
            attempt.agent.shutdown();
        }
    }

    fn occupancy(&self) -> Occupancy {
        Occupancy {
            requests: self.open.len(),
            waiting: self.open.len() - self.calls(),
            ..Occupancy::default()
        }
    }

    /// With the chat API, the server renders conversations itself.
    fn try_conversations(&self, conversations: &[Conversation]) -> Result<()> {
        match (&self.tokens, self.config.endpoint_api) {
            (Some(tokens), EndpointApi::Completions) => tokens.try_out(conversations),
            _ => Ok(()),
        }
    }

    fn prompt_text(&self, messages: &[Message]) -> Option<String> {
        match (&self.tokens, self.config.endpoint_api) {
            (_, EndpointApi::Chat) => None,
            (Some(tokens), EndpointApi::Completions) => tokens.prompt_text(messages),
            (None, EndpointApi::Completions) => Some(tokens::plain(messages).text),
        }
    }

    /// The server's caches cannot be reset from here.
    fn restart(&mut self, _reuse: bool) -> Result<()> {
        if self.open.is_empty() {
            Ok(())
        } else {
            Err(restart_refused(self.open.len()))
        }
    }

    fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    fn traffic(&mut self) -> Option<RemoteRecord> {
        let counts = self.counter.as_ref().map(Counter::all);
        Some(self.traffic.take(counts.unwrap_or_default()))
    }
}

impl Drop for RemoteEngine {
    /// Shuts the connections down, so that their threads end.
    fn drop(&mut self) {
        for (_, open) in std::mem::take(&mut self.open) {
            if let State::Calling(attempt) = open.state {
                attempt.agent.shutdown();
            }
        }
        for (_, (agent, _)) in self.draining.drain() {
            agent.shutdown();
        }
    }
}
