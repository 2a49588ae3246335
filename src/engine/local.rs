//! The in-process engine: model, tokenizer, chat template, scheduler and sampler.

mod admission;
mod fork;
mod limits;
mod results;
mod shortage;
mod speculate;
mod start;
#[cfg(test)]
mod tests;
mod text;

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
use super::stops::Matched;
use super::tokenizer::{AddedTokens, Tokenizer};
use super::{
    Completion, Conversation, Engine, EngineInfo, Event, EventKind, Finish, Message, Occupancy,
    Request, RequestId, restart_refused, shown_prompt,
};
use crate::config::{Backend, DeviceChoice};
use crate::error::{Error, Result};
use crate::profile::{self, Activity, PassTokens, Span};
use crate::record::shortage::MemoryShortage;
use crate::stopwatch::Fence;

use limits::Lengths;
use results::Row;
use speculate::Drafts;
use start::warm_up;
use text::AnswerText;

pub use start::LocalOptions;

// The cache makes the page tables, and the kernels read them.
const _: () = assert!(PAGE_TOKENS == super::kernels::PAGE);

/// Engines that this process has loaded: a run loads one.
static LOADS: AtomicUsize = AtomicUsize::new(0);

/// Upper bound on the tokens that a chat template adds to a conversation.
const TEMPLATE_TOKENS: usize = 1024;

/// Minimum prefix that is worth waiting for while another request computes it: a page, in tokens.
const WORTH_WAITING: usize = PAGE_TOKENS;

/// A model in this process, loaded before the workflow loop starts.
pub struct LocalEngine {
    info: EngineInfo,
    /// Which device was taken, and why.
    note: Option<String>,
    model: Box<dyn Model>,
    tokenizer: Tokenizer,
    added: AddedTokens,
    chat: ChatTemplate,
    scheduler: Scheduler,
    /// For models with paged memory.
    kv: Option<KvCache>,
    sequences: HashMap<RequestId, Sequence>,
    next_id: u64,
    speculate: bool,
    lengths: Lengths,
    /// Failures to report with the next poll.
    failed: Vec<Event>,
    /// Passes for which the device's memory was short, not reported yet.
    shortages: Vec<MemoryShortage>,
    /// Whether the next pass is one that failed for lack of memory.
    tries_again: bool,
    /// The last pass's logits, kept to reuse the buffer.
    logits: Vec<f32>,
}

struct Sequence {
    /// `None` until admission.
    slot: Option<Slot>,
    /// Its pages while it is active, for models with paged memory.
    lease: Option<Lease>,
    /// Whether [`EventKind::Started`] was sent.
    started: bool,
    /// Prompt tokens found in the cache at the first admission.
    reused: Option<usize>,
    /// The prompt, then what was generated.
    tokens: Vec<u32>,
    prompt_tokens: usize,
    max_tokens: usize,
    ignore_eos: bool,
    sampler: Sampler,
    /// The text so far, if it is needed before the end.
    text: Option<AnswerText>,
    drafts: Drafts,
    /// The sample that computes the shared prompt, while this one waits for it.
    forks_from: Option<RequestId>,
    /// Whether other samples wait for this one's prompt.
    has_forks: bool,
    /// Waiting, prefill or decode.
    phase: Activity,
}

impl LocalEngine {
    /// Checks that the device is available and suits the backend, before a model is fetched.
    ///
    /// # Errors
    /// Exit code 3 if it is not.
    pub fn preflight(choice: DeviceChoice, backend: Backend) -> Result<()> {
        device::preflight(choice, backend)
    }

    /// Loads a model and runs it once, so that no set-up cost falls on the first request.
    ///
    /// # Errors
    /// Exit code 3 if the device is not available, the file is broken, its architecture, tokenizer or
    /// chat template is not supported, or memory does not suffice; 2 for a context larger than the
    /// model's.
    pub fn load(file: &ModelFile, options: &LocalOptions) -> Result<Self> {
        LOADS.fetch_add(1, Ordering::Relaxed);
        let limits = Limits {
            context: options.context,
            kv_bytes: options.kv_bytes,
            gpu: options.gpu,
        };
        let source = model::open(&file.path)?;
        let opened = device::open(options.device, options.backend, |gpu| {
            model::check_gpu(&source, &limits, gpu)
        })?;
        let loaded = model::load_within(source, options.backend, &opened.device, &limits)?;
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
        let lengths = Lengths::new(model.as_ref(), &limits, &opened.device)?;
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
        // A few more are usual: added tokens that the model never sees. A prompt that holds one of them
        // is refused.
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
            device: opened.info,
            pass_tokens: Some(model.pass_tokens()),
            max_sequences: Some(model.max_sequences()),
            jit_ms: model.jit_ms(),
            notes: tokenizer.notes().to_vec(),
        };
        let places = model.max_sequences().min(options.max_sequences);
        Ok(Self {
            info,
            note: opened.note,
            added: AddedTokens::of(&tokenizer)?,
            tokenizer,
            chat,
            scheduler: Scheduler::new(places, model.pass_tokens()),
            kv,
            sequences: HashMap::new(),
            next_id: 0,
            speculate: options.speculate && model.checks_guesses(),
            lengths,
            failed: Vec::new(),
            shortages: Vec::new(),
            tries_again: false,
            logits: Vec::new(),
            model,
        })
    }

    /// Engines that this process has loaded.
    pub fn loads() -> usize {
        LOADS.load(Ordering::Relaxed)
    }

    /// The model and its description, for benchmarks without a scheduler.
    pub(super) fn into_model(self) -> (EngineInfo, Box<dyn Model>) {
        (self.info, self.model)
    }

    pub(super) fn kv_budget(&self) -> usize {
        self.lengths.budget()
    }

    /// Tokenizes a request's prompt and checks that the model can take it.
    ///
    /// # Errors
    /// Exit code 100: it cannot be rendered, is too long, or holds a token that the model does not
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
                "the prompt holds the token `{text}`, number {token}, which is in the tokenizer but not \
                 in the model: it knows {known} tokens"
            ))
            .hint(
                "remove that text from the prompt; if it is not there, the tokenizer may belong to \
                 another model",
            ));
        }
        if self.kv.is_none() {
            let whole = tokens.len().saturating_add(request.max_tokens);
            // A library owns them, and copies them as they grow.
            memory::check(self.lengths.bytes_of(whole).saturating_mul(2)).map_err(|source| {
                Error::flow("not enough memory for the keys and values of the sequence")
                    .caused_by(source)
                    .hint("set a smaller MAX_TOKENS or CONTEXT")
            })?;
        }
        Ok(tokens)
    }

    /// Renders and tokenizes a request's prompt, without checks.
    fn tokens_of(&self, request: &Request) -> Result<Vec<u32>> {
        if request.options.plain_prompt {
            let _span = profile::span(Span::Tokenise);
            let text: String = (request.messages.iter())
                .map(|message| message.content.as_str())
                .collect();
            return self.tokenizer.encode(&text, true);
        }
        let rendering = profile::span(Span::PromptRendering);
        let Rendered { text, content } = self.chat.render(&request.messages)?;
        drop(rendering);
        let tokenising = profile::span(Span::Tokenise);
        // The template writes the special tokens itself, and content contributes none.
        let rendered = (text.as_str(), content.as_slice());
        let tokens = (self
            .tokenizer
            .encode_rendered(&self.added, rendered, false)?)
        .ids;
        drop(tokenising);
        Ok(tokens)
    }

    /// Queues a request. `forks_from` is the sample that computes the shared prompt.
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
                prompt_tokens: tokens.len(),
                tokens,
                max_tokens: request.max_tokens.max(1),
                ignore_eos: request.ignore_eos,
                sampler: Sampler::new(request.sampling),
                text: AnswerText::new(&request.options),
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

    /// `Started` events for sequences that were in no pass before. They are reported before the pass,
    /// so that the clock is read between queue wait and prefill.
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

    /// Samples the next token of a sequence and adds its events. Returns the token if the sequence goes
    /// on.
    fn advance(
        &mut self,
        id: RequestId,
        row: Row<'_>,
        events: &mut Vec<Event>,
    ) -> Result<Option<u32>> {
        let Some(sequence) = self.sequences.get_mut(&id) else {
            return Ok(None);
        };
        let sampling = profile::span(Span::Sample);
        let token = match row {
            Row::Logits(logits) => sequence.sampler.next(logits),
            Row::Sampled(token) => token,
            Row::OnDevice(row) => {
                let parameters = sequence.sampler.parameters();
                self.model.sample_row(row, parameters)?
            }
        };
        drop(sampling);
        Ok(self.extend(id, token, events))
    }

    /// Adds a sampled token to its sequence, and its events. Returns the token if the sequence goes on.
    fn extend(
        &mut self,
        id: RequestId,
        token: Option<u32>,
        events: &mut Vec<Event>,
    ) -> Option<u32> {
        let sequence = self.sequences.get_mut(&id)?;
        let Some(token) = token else {
            self.release(id);
            let kind = EventKind::Failed("the model's logits are all NaN or -inf".to_owned());
            events.push(Event { id, kind });
            return None;
        };
        if self.tokenizer.is_end(token) && !sequence.ignore_eos {
            self.finish(id, Finish::Stop, events);
            return None;
        }
        sequence.tokens.push(token);
        let generated = sequence.tokens.len() - sequence.prompt_tokens;
        if generated == 1 {
            sequence.phase.next(Span::Decode);
        }
        let full = sequence.tokens.len() >= self.lengths.context();
        let full = full || generated >= sequence.max_tokens;
        events.push(Event {
            id,
            kind: EventKind::Token(token),
        });
        let said = sequence.text.as_mut().map(|text| {
            let streamed = text.streamed;
            (text.push(&self.tokenizer, token)).map(|matched| (streamed, matched))
        });
        match said.transpose() {
            Ok(None) => {}
            Ok(Some((streamed, Matched { text, stopped }))) => {
                if streamed && !text.is_empty() {
                    let kind = EventKind::Text(text);
                    events.push(Event { id, kind });
                }
                if stopped {
                    self.finish(id, Finish::Stop, events);
                    return None;
                }
            }
            Err(error) => {
                self.release(id);
                let kind = EventKind::Failed(error.chain());
                events.push(Event { id, kind });
                return None;
            }
        }
        if full {
            self.finish(id, Finish::Length, events);
            return None;
        }
        self.scheduler.extended(id);
        Some(token)
    }

    /// Token counts of a pass. Prompt tokens are prefill, and so are tokens that a sequence had
    /// generated before it was preempted.
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

    /// Ends a request, and adds its last events.
    fn finish(&mut self, id: RequestId, finish: Finish, events: &mut Vec<Event>) {
        let kind = match self.release(id) {
            None => EventKind::Failed("the request is unknown".to_owned()),
            Some(sequence) => match self.completion(sequence, finish) {
                Ok((last, completion)) => {
                    if let Some(text) = last {
                        let kind = EventKind::Text(text);
                        events.push(Event { id, kind });
                    }
                    EventKind::Finished(completion)
                }
                Err(error) => EventKind::Failed(error.chain()),
            },
        };
        events.push(Event { id, kind });
    }

    /// The result of a sequence that has ended, and the part of its text that is still to be reported.
    fn completion(
        &self,
        sequence: Sequence,
        finish: Finish,
    ) -> Result<(Option<String>, Completion)> {
        let _span = profile::span(Span::Detokenise);
        let tokens = sequence.tokens[sequence.prompt_tokens..].to_vec();
        let reused = sequence.reused.unwrap_or(0);
        let (last, text, finish) = match sequence.text {
            None => (None, self.tokenizer.decode(&tokens)?, finish),
            Some(answer) => {
                let streamed = answer.streamed;
                let (last, text) = answer.finish(&self.tokenizer, &tokens)?;
                let finish = if last.stopped { Finish::Stop } else { finish };
                let last = Some(last.text).filter(|text| streamed && !text.is_empty());
                (last, text, finish)
            }
        };
        let completion = Completion {
            text,
            tokens,
            prompt_tokens: sequence.prompt_tokens,
            prefill_tokens: sequence.prompt_tokens - reused,
            reused_tokens: reused,
            drafted_tokens: sequence.drafts.drafted,
            accepted_tokens: sequence.drafts.accepted,
            finish,
            served: None,
        };
        Ok((last, completion))
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

    fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    fn check(&self, request: &Request) -> Result<()> {
        let text: usize = request.messages.iter().map(|one| one.content.len()).sum();
        let most = text.saturating_add(TEMPLATE_TOKENS);
        // A token is at least one byte.
        if most.saturating_add(request.max_tokens) <= self.lengths.tokens() {
            return Ok(());
        }
        match self.tokens_of(request) {
            Ok(tokens) => self.lengths.check_ahead(tokens.len(), request.max_tokens),
            // Other errors are reported on submission.
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
            // Without pages to share, each computes the prompt itself.
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
        if let Some((work, draft)) = self.draft(&plan) {
            drop(scheduling);
            return match self.verify_draft(work, &draft) {
                Ok(events) => {
                    self.tries_again = false;
                    Ok(events)
                }
                Err(error) => {
                    self.lower_admission(error)?;
                    // A draft takes more memory than a token.
                    self.speculate = false;
                    self.poll()
                }
            };
        }
        let sampling = self.sampling_of(plan.iter().filter(|work| work.last));
        // Page tables are read for every pass: publishing can change them.
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
        let results = results::forward(self.model.as_mut(), &mut self.logits, &chunks, &sampling);
        drop(pass);
        let results = match results {
            Ok(results) => results,
            Err(error) => {
                self.lower_admission(error)?;
                return self.poll();
            }
        };
        self.tries_again = false;
        let scheduling = profile::span(Span::Schedule);
        for work in &plan {
            self.scheduler.computed(*work);
            let Some(sequence) = self.sequences.get_mut(&work.id) else {
                continue;
            };
            // Others may wait for a part of a prompt.
            if let (Some(kv), Some(lease), true) =
                (&mut self.kv, &mut sequence.lease, work.count > 1)
            {
                kv.publish(lease, &sequence.tokens[..work.start + work.count]);
            }
        }
        drop(scheduling);
        let mut events = Vec::new();
        let wanted = plan.iter().filter(|work| work.last);
        for (row, work) in wanted.enumerate() {
            self.fork_samples(work.id, results.logits(row), &mut events)?;
            self.advance(work.id, results.row(row), &mut events)?;
        }
        self.keep(results);
        Ok(events)
    }

    fn cancel(&mut self, id: RequestId) {
        self.release(id);
    }

    fn takes_text(&self) -> bool {
        true
    }

    fn excess(&self, request: &Request) -> Option<(usize, usize)> {
        let most = self.lengths.tokens().saturating_sub(1);
        let tokens = self.tokens_of(request).ok()?.len();
        (tokens > most).then_some((tokens, most))
    }

    fn occupancy(&self) -> Occupancy {
        let stats = self.kv.as_ref().map(KvCache::stats);
        let started = self.sequences.values().filter(|sequence| sequence.started);
        Occupancy {
            requests: self.sequences.len(),
            waiting: self.sequences.len() - started.count(),
            kv_pages: stats.map_or(0, |stats| stats.leased),
            kv_pages_limit: stats.map_or(0, |stats| stats.capacity),
        }
    }

    fn take_shortages(&mut self) -> Vec<MemoryShortage> {
        std::mem::take(&mut self.shortages)
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
