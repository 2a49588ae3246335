//! What clients get: OpenAI's objects `chat.completion`, `chat.completion.chunk` and `text_completion`.

use serde::Serialize;

use crate::engine::Completion;

/// What all objects of one answer share.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) id: String,
    /// Seconds since 1970.
    pub(super) created: u64,
    pub(super) model: String,
    pub(super) is_chat: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Usage {
    prompt_tokens: usize,
    completion_tokens: usize,
    total_tokens: usize,
    prompt_tokens_details: PromptDetails,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
struct PromptDetails {
    cached_tokens: usize,
}

impl Usage {
    /// Adds a choice. The prompt counts once, as the first choice found it.
    pub(super) fn add(&mut self, choice: usize, completion: &Completion) {
        if choice == 0 {
            self.prompt_tokens = completion.prompt_tokens;
            self.prompt_tokens_details.cached_tokens = completion.reused_tokens;
        }
        self.completion_tokens += completion.decode_tokens();
        self.total_tokens = self.prompt_tokens + self.completion_tokens;
    }
}

#[derive(Serialize)]
struct Object<'a, C> {
    id: &'a str,
    object: &'a str,
    created: u64,
    model: &'a str,
    choices: &'a [C],
    /// Left out unless it was asked for; then `null` in all chunks but the last.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

#[derive(Serialize)]
struct ChatChoice<'a> {
    index: usize,
    message: ChatMessage<'a>,
    logprobs: (),
    finish_reason: &'a str,
}

#[derive(Serialize)]
struct ChatMessage<'a> {
    role: &'a str,
    content: &'a str,
    refusal: (),
}

#[derive(Serialize)]
struct ChatPiece<'a> {
    index: usize,
    delta: Delta<'a>,
    logprobs: (),
    finish_reason: Option<&'a str>,
}

#[derive(Serialize)]
struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    content: Option<&'a str>,
}

#[derive(Serialize)]
struct PlainPiece<'a> {
    index: usize,
    text: &'a str,
    logprobs: (),
    finish_reason: Option<&'a str>,
}

impl Head {
    fn object<C: Serialize>(
        &self,
        object: &str,
        choices: &[C],
        usage: Option<Option<Usage>>,
    ) -> String {
        let object = Object {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage,
        };
        // Strings and numbers always serialize.
        serde_json::to_string(&object).unwrap_or_default()
    }

    /// The whole answer, with its choices in order.
    pub(super) fn whole(&self, completions: &[Completion], usage: Usage) -> String {
        let choices = completions.iter().enumerate();
        let usage = Some(Some(usage));
        if !self.is_chat {
            let pieces = choices.map(|(index, completion)| PlainPiece {
                index,
                text: &completion.text,
                logprobs: (),
                finish_reason: Some(completion.finish.as_str()),
            });
            return self.object("text_completion", &pieces.collect::<Vec<_>>(), usage);
        }
        let choices = choices.map(|(index, completion)| ChatChoice {
            index,
            message: ChatMessage {
                role: "assistant",
                content: &completion.text,
                refusal: (),
            },
            logprobs: (),
            finish_reason: completion.finish.as_str(),
        });
        self.object("chat.completion", &choices.collect::<Vec<_>>(), usage)
    }

    /// A chunk of a stream: text, or the end of a choice with its reason.
    pub(super) fn chunk(
        &self,
        index: usize,
        part: Part<'_>,
        usage: Option<Option<Usage>>,
    ) -> String {
        let (role, content, finish_reason) = match part {
            Part::Start => (Some("assistant"), Some(""), None),
            Part::Text(text) => (None, Some(text), None),
            Part::End(reason) => (None, None, Some(reason)),
        };
        if !self.is_chat {
            let piece = PlainPiece {
                index,
                text: content.unwrap_or_default(),
                logprobs: (),
                finish_reason,
            };
            return self.object("text_completion", &[piece], usage);
        }
        let piece = ChatPiece {
            index,
            delta: Delta { role, content },
            logprobs: (),
            finish_reason,
        };
        self.object("chat.completion.chunk", &[piece], usage)
    }

    /// The last chunk of a stream: the usage, without choices.
    pub(super) fn usage_chunk(&self, usage: Usage) -> String {
        let object = match self.is_chat {
            true => "chat.completion.chunk",
            false => "text_completion",
        };
        self.object::<ChatPiece<'_>>(object, &[], Some(Some(usage)))
    }
}

/// What a chunk says about a choice.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    /// The first chunk of a chat's choice, which has the role.
    Start,
    Text(&'a str),
    End(&'a str),
}
