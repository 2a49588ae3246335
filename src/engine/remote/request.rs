//! A request as the server reads it.

use serde::Serialize;
use serde_json::{Map, Value};

use super::tokens::LocalTokens;
use crate::config::{EndpointApi, RemoteConfig};
use crate::engine::chat::Rendered;
use crate::engine::{Message, Request, Role};
use crate::error::{Context, Exit, Result};

/// Seeds go over the wire with 31 bits: what every server takes, signed or not.
const SEED_BITS: u64 = 0x7fff_ffff;

#[derive(Serialize)]
struct Body<'a> {
    model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    messages: Option<&'a [Message]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prompt: Option<&'a Sent>,
    max_tokens: usize,
    temperature: f32,
    top_p: f32,
    #[serde(skip_serializing_if = "is_zero")]
    top_k: usize,
    seed: u64,
    stream: bool,
    stream_options: StreamOptions,
    /// vLLM's and llama.cpp's extension.
    #[serde(skip_serializing_if = "is_false")]
    ignore_eos: bool,
    /// What the user says besides; none of the members above.
    #[serde(flatten)]
    extra: &'a Map<String, Value>,
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // As serde calls it.
fn is_zero(count: &usize) -> bool {
    *count == 0
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_false(flag: &bool) -> bool {
    !*flag
}

/// What goes over the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    /// JSON.
    pub(super) body: Vec<u8>,
    /// The prompt as it is sent to `/completions`.
    pub(super) prompt: Option<Sent>,
}

/// A prompt of `/completions`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Sent {
    Text(String),
    /// Made by the local tokenizer: in a text, the server would take what a message says for a special
    /// token where it spells one, and many would put a second BOS token before the template's own.
    Tokens(Vec<u32>),
}

/// Writes a request down.
///
/// # Errors
/// A conversation that the local chat template refuses.
pub(super) fn outgoing(
    request: &Request,
    model: &str,
    config: &RemoteConfig,
    tokens: Option<&LocalTokens>,
) -> Result<Outgoing> {
    let prompt = match config.endpoint_api {
        EndpointApi::Chat => None,
        EndpointApi::Completions => Some(match tokens {
            Some(tokens) => Sent::Tokens(tokens.prompt(&request.messages)?),
            None => Sent::Text(plain(&request.messages).text),
        }),
    };
    let body = Body {
        model,
        messages: prompt.is_none().then_some(&request.messages),
        prompt: prompt.as_ref(),
        max_tokens: request.max_tokens.max(1),
        temperature: request.sampling.temperature,
        top_p: request.sampling.top_p,
        top_k: request.sampling.top_k,
        seed: request.sampling.seed & SEED_BITS,
        stream: true,
        stream_options: StreamOptions {
            include_usage: true,
        },
        ignore_eos: request.ignore_eos,
        extra: &config.endpoint_extra,
    };
    let body = serde_json::to_vec(&body).or_exit(Exit::FlowFailed, || {
        "failed to write the request as JSON".to_owned()
    })?;
    Ok(Outgoing { body, prompt })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Endpoint, Patience};
    use crate::engine::{Origin, Sampling};

    fn request() -> Request {
        let message = |role, content: &str| Message {
            role,
            content: content.to_owned(),
        };
        Request {
            origin: Origin::default(),
            messages: vec![
                message(Role::System, "Be \"brief\"."),
                message(Role::User, "Hi"),
                message(Role::Assistant, "Hello."),
                message(Role::User, "Bye"),
            ],
            max_tokens: 48,
            ignore_eos: false,
            sampling: Sampling::default(),
        }
    }

    fn body(request: &Request, endpoint_api: EndpointApi) -> String {
        body_with(request, endpoint_api, "{}")
    }

    fn body_with(request: &Request, endpoint_api: EndpointApi, extra: &str) -> String {
        let config = RemoteConfig {
            endpoint: Endpoint::parse("http://host/v1").expect("sound"),
            api_key: None,
            endpoint_api,
            endpoint_extra: serde_json::from_str(extra).expect("an object"),
            tokenizer: None,
            patience: Patience::default(),
        };
        let outgoing = outgoing(request, "m", &config, None).expect("plain fields");
        String::from_utf8(outgoing.body).expect("JSON is UTF-8")
    }

    #[test]
    fn a_chat() {
        insta::assert_snapshot!(body(&request(), EndpointApi::Chat), @r#"{"model":"m","messages":[{"role":"system","content":"Be \"brief\"."},{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello."},{"role":"user","content":"Bye"}],"max_tokens":48,"temperature":0.0,"top_p":1.0,"seed":0,"stream":true,"stream_options":{"include_usage":true}}"#);
    }

    #[test]
    fn a_plain_completion() {
        insta::assert_snapshot!(body(&request(), EndpointApi::Completions), @r#"{"model":"m","prompt":"Be \"brief\".\n\nUser: Hi\n\nAssistant: Hello.\n\nUser: Bye\n\nAssistant:","max_tokens":48,"temperature":0.0,"top_p":1.0,"seed":0,"stream":true,"stream_options":{"include_usage":true}}"#);
    }

    #[test]
    fn sampling_goes_along_where_it_says_something() {
        let mut sampled = request();
        sampled.sampling = Sampling {
            temperature: 0.7,
            top_p: 0.95,
            top_k: 40,
            seed: u64::MAX,
        };
        sampled.ignore_eos = true;
        let body = body_with(&sampled, EndpointApi::Chat, r#"{"repeat_penalty": 1.0}"#);
        for part in [
            r#""temperature":0.7,"top_p":0.95,"top_k":40,"seed":2147483647,"#,
            r#""ignore_eos":true,"repeat_penalty":1.0}"#,
        ] {
            assert!(body.contains(part), "{body}");
        }
    }
}
