//! The engine in this process: model, tokenizer and chat template, scheduler and sampler.

mod fork;
mod limits;
mod places;
mod speculate;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::chat::{ChatTemplate, Rendered};
use super::device;
use super::kv::{KvCache, Lease, PAGE_TOKENS};
use super::load::hub::ModelFile;
use super::memory;
use super::model::{self, Chunk, Limits, Model, Slot, Source};
use super::sampler::Sampler;
use super::scheduler::{Scheduler, Work};
use super::tokenizer::{AddedTokens, Tokenizer};
use super::{
    Completion, Conversation, Engine, EngineInfo, Event, EventKind, Finish, Message, Request,
    RequestId, restart_refused, shown_prompt,
};
use crate::config::{Backend, DeviceChoice};
use crate::error::{Error, Result};
use crate::profile::{self, Activity, PassTokens, Span};
use crate::stopwatch::Fence;

use limits::Lengths;
use speculate::Drafts;

/// Most tokens of a forward pass: enough for the matrix product to be at its best, and few enough that
/// what one product writes is still in a near cache when the next step reads it (with 512, 4 % slower),
/// and that an interrupt or another flow's next token waits for a fraction of a second.
pub(super) const TOKENS_A_PASS: usize = 256;

// Page tables are made in the one and read in the other.
const _: () = assert!(PAGE_TOKENS == super::kernels::PAGE);

/// How many engines this process has loaded: a run loads one.
static LOADS: AtomicUsize = AtomicUsize::new(0);

/// Tokens that a chat template can be expected to put around a conversation at most.
const TEMPLATE_TOKENS: usize = 1024;

/// Tokens of a prompt that another one, which is being computed, will have made known, and which
/// are then worth waiting for: a page.
const WORTH_WAITING: usize = PAGE_TOKENS;

/// How a model is loaded.
#[derive(Debug, Clone)]
pub struct LocalOptions {
    /// Where it runs.
    pub device: DeviceChoice,
    /// Which forward pass computes the model.
    pub backend: Backend,
    /// How many requests are computed at once, as far as the model can.
    pub max_sequences: usize,
    /// Whether keys and values of a prefix that was computed before serve again.
    pub reuse: bool,
    /// Memory for keys and values in bytes; `None`: 1 GiB, or what one full context takes as far as there
    /// is memory.
    pub kv_bytes: Option<usize>,
    /// Most tokens of a sequence; `None`: as many as the model can.
    pub context: Option<usize>,
    /// Whether a sequence that decodes alone guesses its next tokens and has the guesses checked in one
    /// pass. The tokens are the same.
    pub speculate: bool,
}

/// A model in this process. Loaded before the workflow loop starts.
pub struct LocalEngine {
    info: EngineInfo,
    model: Box<dyn Model>,
    tokenizer: Tokenizer,
    added: AddedTokens,
    chat: ChatTemplate,
    scheduler: Scheduler,
    /// Of models with paged memory.
    kv: Option<KvCache>,
    sequences: HashMap<RequestId, Sequence>,
    next_id: u64,
    speculate: bool,
    lengths: Lengths,
    /// Requests that failed since the last poll told of any.
    failed: Vec<Event>,
    /// The last pass's, kept for its memory.
    logits: Vec<f32>,
}

/// A request and its sequence.
struct Sequence {
    /// `None` until it is admitted.
    slot: Option<Slot>,
    /// Its pages, of models with paged memory, while it is active.
    lease: Option<Lease>,
    /// Whether it was told that it starts.
    started: bool,
    /// Tokens of the prompt that were found known when it was first admitted.
    reused: Option<usize>,
    /// Tokens computed.
    computed: usize,
    /// The prompt, then what was generated.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    ignore_eos: bool,
    sampler: Sampler,
    drafts: Drafts,
    /// The sample of the same prompt that computes it, while this one waits for that.
    forks_from: Option<RequestId>,
    /// Whether others wait for this one's prompt.
    has_forks: bool,
    /// Waiting, prefill, decoding.
    phase: Activity,
}

impl LocalEngine {
    /// Says early, before a model is fetched, whether the device can be had.
    ///
    /// # Errors
    /// Exit code 3 where it cannot.
    pub fn preflight(choice: DeviceChoice) -> Result<()> {
        device::preflight(choice)
    }

    /// Loads a model and runs it once, so that nothing is left for the first request to set up.
    ///
    /// # Errors
    /// Exit code 3 where the device cannot be had, the file is broken, its architecture, tokenizer
    /// or chat template is not supported, or the memory does not suffice; 2 for a context that is
    /// larger than the model's.
    pub fn load(file: &ModelFile, options: &LocalOptions) -> Result<Self> {
        LOADS.fetch_add(1, Ordering::Relaxed);
        let (device, device_info) = device::open(options.device)?;
        let limits = Limits {
            context: options.context,
            kv_bytes: options.kv_bytes,
        };
        let loaded = model::load_within(&file.path, options.backend, &device, &limits)?;
        let (tokenizer, chat) = match &loaded.source {
            Source::Gguf(metadata) => {
                let tokenizer = Tokenizer::from_gguf(metadata)?;
                let chat = ChatTemplate::from_gguf(metadata, &tokenizer)?;
                (tokenizer, chat)
            }
            Source::Folder(folder) => {
                let tokenizer = Tokenizer::from_folder(folder)?;
                let chat = ChatTemplate::from_folder(folder, &tokenizer)?;
                (tokenizer, chat)
            }
        };
        let mut model = loaded.model;
        let lengths = Lengths::new(model.as_ref(), &limits, &device)?;
        let kv = match model.page_bytes() {
            None => None,
            Some(page_bytes) => {
                let pages = (lengths.budget() / page_bytes.max(1)).min(u32::MAX as usize);
                model.set_pages(pages)?;
                Some(KvCache::new(pages, PAGE_TOKENS, options.reuse))
            }
        };
        warm_up(model.as_mut())?;

        let spec = model.spec();
        // A few more are usual: tokens that were added, and that the model never sees. A prompt that
        // holds one of them is refused.
        if tokenizer.vocabulary() > 2 * spec.vocabulary {
            return Err(Error::preflight(format!(
                "{}: the tokenizer knows {} tokens, and the model only {}",
                file.path.display(),
                tokenizer.vocabulary(),
                spec.vocabulary
            ))
            .hint("the files of two models seem to be mixed: fetch them again"));
        }
        let info = EngineInfo {
            kind: "local".to_owned(),
            model: loaded.name.unwrap_or_else(|| {
                let name = file.path.file_stem().unwrap_or_default();
                name.to_string_lossy().into_owned()
            }),
            model_path: Some(file.path.display().to_string()),
            model_sha256: file.sha256.clone(),
            architecture: Some(spec.architecture.clone()),
            backend: model.backend().to_owned(),
            weights: Some(model.weights()),
            context_length: lengths.context(),
            device: device_info,
            notes: tokenizer.notes().to_vec(),
        };
        let places = model.max_sequences().min(options.max_sequences);
        Ok(Self {
            info,
            added: AddedTokens::of(&tokenizer)?,
            tokenizer,
            chat,
            scheduler: Scheduler::new(places, TOKENS_A_PASS),
            kv,
            sequences: HashMap::new(),
            next_id: 0,
            speculate: options.speculate && model.checks_guesses(),
            lengths,
            failed: Vec::new(),
            logits: Vec::new(),
            model,
        })
    }

    /// How many engines this process has loaded.
    pub fn loads() -> usize {
        LOADS.load(Ordering::Relaxed)
    }

    /// The model alone, and what it is: for measuring it without a scheduler.
    pub(super) fn into_model(self) -> (EngineInfo, Box<dyn Model>) {
        (self.info, self.model)
    }

    /// Memory for keys and values, in bytes.
    pub(super) fn kv_budget(&self) -> usize {
        self.lengths.budget()
    }

    /// A request's prompt in tokens, where the model can take it.
    ///
    /// # Errors
    /// Exit code 100: it cannot be rendered, it is too long, or it holds a token that the model does not
    /// know.
    fn prompt(&self, request: &Request) -> Result<Vec<u32>> {
        let tokens = self.tokens_of(request)?;
        if tokens.is_empty() {
            return Err(Error::flow("the prompt has no tokens")
                .hint("give the step a prompt, or the template a system message"));
        }
        self.lengths.check_prompt(tokens.len())?;
        let known = self.model.spec().vocabulary;
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= known) {
            let text = self.tokenizer.token_text(token).unwrap_or_default();
            return Err(Error::flow(format!(
                "the prompt holds the token `{text}`, number {token}, which the tokenizer has and the \
                 model has not: it knows {known} tokens"
            ))
            .hint(
                "leave that text out of the prompt; where it is not in it, the tokenizer may be that of \
                 another model",
            ));
        }
        if self.kv.is_none() {
            let whole = tokens.len().saturating_add(request.max_tokens);
            // A library keeps them, and copies them as they grow.
            memory::check(self.lengths.bytes_of(whole).saturating_mul(2)).map_err(|source| {
                Error::flow("there is no memory for the keys and values of the sequence")
                    .caused_by(source)
                    .hint("set a smaller MAX_TOKENS or CONTEXT")
            })?;
        }
        Ok(tokens)
    }

    /// A request's prompt in tokens, whatever they are.
    fn tokens_of(&self, request: &Request) -> Result<Vec<u32>> {
        let rendering = profile::span(Span::PromptRendering);
        let Rendered { text, content } = self.chat.render(&request.messages)?;
        drop(rendering);
        let tokenising = profile::span(Span::Tokenise);
        // The template writes the special tokens itself, and content makes none.
        let rendered = (text.as_str(), content.as_slice());
        let tokens = (self
            .tokenizer
            .encode_rendered(&self.added, rendered, false)?)
        .ids;
        drop(tokenising);
        Ok(tokens)
    }

    /// Queues a request with this prompt; `forks_from` is the sample that computes it.
    fn queue(
        &mut self,
        request: &Request,
        tokens: Vec<u32>,
        forks_from: Option<RequestId>,
    ) -> RequestId {
        let id = RequestId(self.next_id);
        self.next_id += 1;
        self.scheduler.submit(id, tokens.len());
        self.sequences.insert(
            id,
            Sequence {
                slot: None,
                lease: None,
                started: false,
                reused: None,
                computed: 0,
                prompt_tokens: tokens.len(),
                tokens,
                max_tokens: request.max_tokens.max(1),
                ignore_eos: request.ignore_eos,
                sampler: Sampler::new(request.sampling),
                drafts: Drafts::default(),
                forks_from,
                has_forks: false,
                phase: Activity::in_scope(Span::QueueWait),
            },
        );
        if let Some(first) = forks_from.and_then(|first| self.sequences.get_mut(&first)) {
            first.has_forks = true;
        }
        id
    }

    /// Those of a pass that were in none before. They are told of before the pass, so that the clock is
    /// read between their wait and their prefill.
    fn starting(&mut self, plan: &[Work]) -> Vec<Event> {
        let mut events = Vec::new();
        for work in plan {
            if let Some(sequence) = self.sequences.get_mut(&work.id)
                && !std::mem::replace(&mut sequence.started, true)
            {
                let kind = EventKind::Started;
                events.push(Event { id: work.id, kind });
            }
        }
        events
    }

    /// Takes the next token of a sequence into account and tells of it. Returns it if the sequence goes
    /// on.
    fn advance(&mut self, id: RequestId, logits: &[f32], events: &mut Vec<Event>) -> Option<u32> {
        let sequence = self.sequences.get_mut(&id)?;
        let sampling = profile::span(Span::Sample);
        let token = sequence.sampler.next(logits);
        drop(sampling);
        let Some(token) = token else {
            self.release(id);
            let kind = EventKind::Failed("the model's logits are not numbers".to_owned());
            events.push(Event { id, kind });
            return None;
        };
        if self.tokenizer.is_end(token) && !sequence.ignore_eos {
            events.push(self.finish(id, Finish::Stop));
            return None;
        }
        sequence.tokens.push(token);
        let generated = sequence.tokens.len() - sequence.prompt_tokens;
        if generated == 1 {
            sequence.phase.next(Span::Decode);
        }
        let full = sequence.tokens.len() >= self.lengths.context();
        events.push(Event {
            id,
            kind: EventKind::Token(token),
        });
        if full || generated >= sequence.max_tokens {
            events.push(self.finish(id, Finish::Length));
            return None;
        }
        self.scheduler.extended(id);
        Some(token)
    }

    /// What the pass computes. Tokens of the prompt are prefill, and so are those that a sequence
    /// had generated before it gave way.
    fn pass(&self, plan: &[Work]) -> PassTokens {
        let is_decode = |work: &&Work| {
            let sequence = self.sequences.get(&work.id);
            work.count == 1 && sequence.is_some_and(|seq| work.start >= seq.prompt_tokens)
        };
        let decode_tokens = plan.iter().filter(is_decode).count();
        PassTokens {
            sequences: plan.len(),
            prefill_tokens: plan.iter().map(|work| work.count).sum::<usize>() - decode_tokens,
            decode_tokens,
        }
    }

    fn finish(&mut self, id: RequestId, finish: Finish) -> Event {
        let kind = match self.release(id) {
            None => EventKind::Failed("the request is unknown".to_owned()),
            Some(sequence) => {
                let tokens = sequence.tokens[sequence.prompt_tokens..].to_vec();
                let reused = sequence.reused.unwrap_or(0);
                let _span = profile::span(Span::Detokenise);
                match self.tokenizer.decode(&tokens) {
                    Ok(text) => EventKind::Finished(Completion {
                        text,
                        tokens,
                        prompt_tokens: sequence.prompt_tokens,
                        prefill_tokens: sequence.prompt_tokens - reused,
                        reused_tokens: reused,
                        drafted_tokens: sequence.drafts.drafted,
                        accepted_tokens: sequence.drafts.accepted,
                        finish,
                        served: None,
                    }),
                    Err(error) => EventKind::Failed(error.chain()),
                }
            }
        };
        Event { id, kind }
    }
}

impl Fence for LocalEngine {
    fn synchronize(&self) -> Result<()> {
        let _span = profile::span(Span::Synchronise);
        self.model.synchronize()
    }
}

impl Engine for LocalEngine {
    fn info(&self) -> &EngineInfo {
        &self.info
    }

    fn check(&self, request: &Request) -> Result<()> {
        let text: usize = request.messages.iter().map(|one| one.content.len()).sum();
        let most = text.saturating_add(TEMPLATE_TOKENS);
        // A token is a byte at the least.
        if most.saturating_add(request.max_tokens) <= self.lengths.tokens() {
            return Ok(());
        }
        match self.tokens_of(request) {
            Ok(tokens) => self.lengths.check_ahead(tokens.len(), request.max_tokens),
            // What is wrong with it otherwise is said when it is submitted.
            Err(_) => Ok(()),
        }
    }

    fn submit(&mut self, request: Request) -> Result<RequestId> {
        let tokens = self.prompt(&request)?;
        Ok(self.queue(&request, tokens, None))
    }

    fn submit_samples(&mut self, request: Request, seeds: &[u64]) -> Result<Vec<RequestId>> {
        let tokens = self.prompt(&request)?;
        let mut ids: Vec<RequestId> = Vec::with_capacity(seeds.len());
        for &seed in seeds {
            let mut request = request.clone();
            request.sampling.seed = seed;
            // Without pages to share, each computes the prompt for itself.
            let first = ids.first().copied().filter(|_| self.kv.is_some());
            ids.push(self.queue(&request, tokens.clone(), first));
        }
        Ok(ids)
    }

    fn poll(&mut self) -> Result<Vec<Event>> {
        let scheduling = profile::span(Span::Schedule);
        self.admit()?;
        let plan = self.plan();
        if !self.failed.is_empty() {
            return Ok(std::mem::take(&mut self.failed));
        }
        if let Some(kv) = &self.kv {
            let stats = kv.stats();
            profile::kv_pages(stats.leased, stats.capacity);
        }
        if plan.is_empty() {
            return Ok(Vec::new());
        }
        let started = self.starting(&plan);
        if !started.is_empty() {
            return Ok(started);
        }
        if let Some((work, guess)) = self.guess(&plan) {
            drop(scheduling);
            return self.check_guess(work, &guess);
        }
        // The page tables are read afresh for every pass: publishing can change them.
        let tables: Vec<Vec<u32>> = plan
            .iter()
            .map(|work| {
                let lease = self.sequences.get(&work.id)?.lease.as_ref()?;
                Some(lease.page_numbers())
            })
            .map(Option::unwrap_or_default)
            .collect();
        let chunks: Vec<Chunk<'_>> = plan
            .iter()
            .zip(&tables)
            .filter_map(|(work, pages)| {
                let sequence = self.sequences.get(&work.id)?;
                Some(Chunk {
                    slot: sequence.slot?,
                    pages,
                    tokens: &sequence.tokens[work.start..work.start + work.count],
                    start: work.start,
                    logits: work.last,
                })
            })
            .collect();
        drop(scheduling);
        let pass = profile::pass(Span::Forward, || self.pass(&plan));
        let mut logits = std::mem::take(&mut self.logits);
        self.model.forward_into(&chunks, &mut logits)?;
        drop(pass);
        let scheduling = profile::span(Span::Schedule);
        for work in &plan {
            self.scheduler.computed(*work);
            let Some(sequence) = self.sequences.get_mut(&work.id) else {
                continue;
            };
            sequence.computed = work.start + work.count;
            // A part of a prompt may be what others wait for.
            if let (Some(kv), Some(lease), true) =
                (&mut self.kv, &mut sequence.lease, work.count > 1)
            {
                kv.publish(lease, &sequence.tokens[..sequence.computed]);
            }
        }
        drop(scheduling);
        let mut events = Vec::new();
        let wanted = plan.iter().filter(|work| work.last);
        let rows = logits.chunks_exact(self.model.spec().vocabulary);
        for (work, logits) in wanted.zip(rows) {
            self.fork_samples(work.id, logits, &mut events)?;
            self.advance(work.id, logits, &mut events);
        }
        self.logits = logits;
        Ok(events)
    }

    fn cancel(&mut self, id: RequestId) {
        self.release(id);
    }

    fn try_conversations(&self, conversations: &[Conversation]) -> Result<()> {
        self.chat.try_out(conversations)
    }

    fn prompt_text(&self, messages: &[Message]) -> Option<String> {
        let rendered = self.chat.render(messages).ok()?;
        let whole = (rendered.text.as_str(), rendered.content.as_slice());
        let encoded = self.tokenizer.encode_rendered(&self.added, whole, false);
        Some(shown_prompt(rendered.text, encoded.ok()?.held))
    }

    fn restart(&mut self, reuse: bool) -> Result<()> {
        if !self.sequences.is_empty() {
            return Err(restart_refused(self.sequences.len()));
        }
        if let Some(kv) = &mut self.kv {
            kv.restart(reuse);
        }
        Ok(())
    }
}

/// A prefill and a decode of a few tokens: page faults, kernel compilation and allocator growth
/// belong to the engine's start, not to the first workflow.
fn warm_up(model: &mut dyn Model) -> Result<()> {
    let slot = model.open()?;
    let tokens = [0; 16];
    let pages = [0];
    for (start, tokens) in [(0, &tokens[..15]), (15, &tokens[15..])] {
        model.forward(&[Chunk {
            slot,
            pages: &pages,
            tokens,
            start,
            logits: true,
        }])?;
    }
    model.close(slot);
    model.synchronize()
}
