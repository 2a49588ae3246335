//! The served model's tokenizer on this machine: renders prompts for `/completions`, and counts
//! tokens independently of the server.

use std::collections::HashMap;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::engine::chat::{ChatTemplate, Rendered};
use crate::engine::load::gguf;
use crate::engine::tokenizer::{AddedTokens, Encoded, Tokenizer};
use crate::engine::{Conversation, Message, RequestId, Role, shown_prompt};
use crate::error::{Error, Exit, Result};

/// Longest wait for outstanding counts, which take milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct LocalTokens {
    tokenizer: Tokenizer,
    added: AddedTokens,
    chat: Option<ChatTemplate>,
}

impl LocalTokens {
    /// Reads a `.gguf` file, a model folder, or the `tokenizer.json` in one.
    ///
    /// # Errors
    /// Exit code 3 if there is no tokenizer, or if the chat template cannot be read.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let read = || {
            let folder = match path.file_name() {
                Some(name) if name == "tokenizer.json" => path.parent(),
                _ => path.is_dir().then_some(path),
            };
            if let Some(folder) = folder {
                let tokenizer = Tokenizer::from_folder(folder)?;
                let chat = ChatTemplate::find_in_folder(folder, &tokenizer)?;
                return Self::new(tokenizer, chat);
            }
            let metadata = gguf::metadata(path)?;
            let tokenizer = Tokenizer::from_gguf(&metadata)?;
            let chat = ChatTemplate::find_in_gguf(&metadata, &tokenizer)?;
            Self::new(tokenizer, chat)
        };
        read().map_err(|error: Error| {
            Error::new(
                Exit::Preflight,
                format!("failed to read the tokenizer {}", path.display()),
            )
            .hint(
                "TOKENIZER (--tokenizer) is a .gguf file, a model's folder, or its tokenizer.json",
            )
            .caused_by(error)
        })
    }

    /// Assumptions made where the file is silent.
    pub(super) fn notes(&self) -> &[String] {
        self.tokenizer.notes()
    }

    fn new(tokenizer: Tokenizer, chat: Option<ChatTemplate>) -> Result<Self> {
        Ok(Self {
            added: AddedTokens::of(&tokenizer)?,
            tokenizer,
            chat,
        })
    }

    /// Renders the conversation with the model's chat template, or as plain text if it has none.
    fn render(&self, messages: &[Message]) -> Result<Rendered> {
        match &self.chat {
            Some(chat) => chat.render(messages),
            None => Ok(plain(messages)),
        }
    }

    fn encode(&self, rendered: &Rendered) -> Result<Encoded> {
        let text = (rendered.text.as_str(), rendered.content.as_slice());
        // A chat template writes the special tokens itself.
        let add_special = self.chat.is_none();
        self.tokenizer
            .encode_rendered(&self.added, text, add_special)
    }

    /// The conversation as the tokens sent to `/completions`. Message content never becomes a
    /// special token.
    ///
    /// # Errors
    /// The chat template rejects the conversation.
    pub(super) fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        Ok(self.encode(&self.render(messages)?)?.ids)
    }

    /// The same prompt as text, for display.
    pub(super) fn prompt_text(&self, messages: &[Message]) -> Option<String> {
        let rendered = self.render(messages).ok()?;
        let held = self.encode(&rendered).ok()?.held;
        Some(shown_prompt(rendered.text, held))
    }

    /// Checks that the chat template can render these conversations.
    ///
    /// # Errors
    /// Exit code 3 if it cannot.
    pub(super) fn try_out(&self, conversations: &[Conversation]) -> Result<()> {
        match &self.chat {
            Some(chat) => chat.try_out(conversations),
            None => Ok(()),
        }
    }

    /// Number of prompt tokens that the server should count; `None` if it cannot be known.
    fn count_prompt(&self, prompt: &Prompt) -> Option<usize> {
        match prompt {
            Prompt::Chat(messages) => {
                // Like servers, which recognize special tokens in message content, too.
                let rendered = self.chat.as_ref()?.render(messages).ok()?;
                Some(self.tokenizer.encode(&rendered.text, false).ok()?.len())
            }
            Prompt::Tokens(count) => Some(*count),
        }
    }

    fn count_answer(&self, text: &str) -> Option<usize> {
        Some(self.tokenizer.encode(text, false).ok()?.len())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Prompt {
    /// Rendered by the server.
    Chat(Arc<[Message]>),
    /// Number of tokens of a prompt that was tokenized here.
    Tokens(usize),
}

enum TokenizerJob {
    Prompt(RequestId, Prompt),
    Answer(RequestId, String),
}

/// The counts of one request; `None` for those that failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) prompt: Option<usize>,
    pub(super) answer: Option<usize>,
}

#[derive(Default)]
struct Board {
    /// Unfinished jobs.
    open: usize,
    counts: HashMap<RequestId, Counts>,
}

/// Counts tokens on its own thread: counting a few thousand tokens takes longer than the time
/// between two of them.
pub(super) struct Counter {
    jobs: Sender<TokenizerJob>,
    board: Arc<(Mutex<Board>, Condvar)>,
}

impl Counter {
    /// Starts the thread, which ends with the counter.
    ///
    /// # Errors
    /// Exit code 3 if no thread can be started.
    pub(super) fn start(tokens: Arc<LocalTokens>) -> Result<Self> {
        let (jobs, inbox) = channel();
        let board = Arc::new((Mutex::new(Board::default()), Condvar::new()));
        let shared = Arc::clone(&board);
        thread::Builder::new()
            .name("count-tokens".to_owned())
            .spawn(move || count(&tokens, &inbox, &shared))
            .map_err(|source| Error::preflight("failed to start a thread").caused_by(source))?;
        Ok(Self { jobs, board })
    }

    /// Starts counting a request's prompt.
    pub(super) fn prompt(&self, id: RequestId, prompt: Prompt) {
        self.give(TokenizerJob::Prompt(id, prompt));
    }

    /// Starts counting an answer.
    pub(super) fn answer(&self, id: RequestId, text: String) {
        self.give(TokenizerJob::Answer(id, text));
    }

    fn give(&self, job: TokenizerJob) {
        self.lock().open += 1;
        if self.jobs.send(job).is_err() {
            self.lock().open -= 1;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        self.board.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `ready` returns true, or no job is open.
    fn wait(&self, ready: impl Fn(&Board) -> bool) -> MutexGuard<'_, Board> {
        let waits = |board: &mut Board| board.open > 0 && !ready(board);
        let waited = (self.board.1).wait_timeout_while(self.lock(), PATIENCE, waits);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// Number of prompt tokens. Waits for the count, which was started long before.
    pub(super) fn prompt_of(&self, id: RequestId) -> Option<usize> {
        let board = self
            .wait(|board| (board.counts.get(&id)).is_some_and(|counts| counts.prompt.is_some()));
        board.counts.get(&id)?.prompt
    }

    /// Waits for all counts and removes them from the counter.
    pub(super) fn all(&self) -> HashMap<RequestId, Counts> {
        std::mem::take(&mut self.wait(|_| false).counts)
    }
}

fn count(tokens: &LocalTokens, inbox: &Receiver<TokenizerJob>, board: &(Mutex<Board>, Condvar)) {
    while let Ok(job) = inbox.recv() {
        let (id, prompt, answer) = match job {
            TokenizerJob::Prompt(id, prompt) => (id, tokens.count_prompt(&prompt), None),
            TokenizerJob::Answer(id, text) => (id, None, tokens.count_answer(&text)),
        };
        let mut state = board.0.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = state.counts.entry(id).or_default();
        counts.prompt = counts.prompt.or(prompt);
        counts.answer = counts.answer.or(answer);
        state.open -= 1;
        drop(state);
        board.1.notify_all();
    }
}

/// A conversation as plain text, for models without a chat template: what the system says, then turns
/// with their speaker's name, up to where the answer begins.
pub(super) fn plain(messages: &[Message]) -> Rendered {
    let mut text = String::new();
    let mut content = Vec::with_capacity(messages.len());
    for message in messages {
        text.push_str(match message.role {
            Role::System => "",
            Role::User => "User: ",
            Role::Assistant => "Assistant: ",
        });
        let start = text.len();
        text.push_str(&message.content);
        content.push(start..text.len());
        text.push_str("\n\n");
    }
    text.push_str("Assistant:");
    content.retain(|range| !range.is_empty());
    Rendered { text, content }
}
