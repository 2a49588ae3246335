//! Request bodies.

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

use super::tokens::{LocalTokens, plain};
use crate::config::{Change, EndpointApi, EndpointExtra, RemoteConfig};
use crate::engine::{Message, Request};
use crate::error::{Context, Exit, Result};

/// Seeds are sent with 31 bits, which every server accepts, signed or not.
const SEED_BITS: u64 = 0x7fff_ffff;

struct Body<'a> {
    model: &'a str,
    messages: Option<&'a [Message]>,
    prompt: Option<&'a Sent>,
    max_tokens: usize,
    temperature: f32,
    top_p: f32,
    top_k: usize,
    seed: u64,
    ignore_eos: bool,
    stop: &'a [String],
    /// The user's additions and changes (`ENDPOINT_EXTRA`).
    extra: &'a EndpointExtra,
}

impl Serialize for Body<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.put(&mut map, "model", &self.model)?;
        if let Some(messages) = self.messages {
            map.serialize_entry("messages", messages)?;
        }
        if let Some(prompt) = self.prompt {
            map.serialize_entry("prompt", prompt)?;
        }
        self.put(&mut map, "max_tokens", &self.max_tokens)?;
        self.put(&mut map, "temperature", &self.temperature)?;
        self.put(&mut map, "top_p", &self.top_p)?;
        self.put_if(self.top_k > 0, &mut map, "top_k", &self.top_k)?;
        self.put(&mut map, "seed", &self.seed)?;
        map.serialize_entry("stream", &true)?;
        let options = StreamOptions {
            include_usage: true,
        };
        self.put(&mut map, "stream_options", &options)?;
        // An extension of vLLM and llama.cpp.
        self.put_if(self.ignore_eos, &mut map, "ignore_eos", &true)?;
        self.put_if(!self.stop.is_empty(), &mut map, "stop", &self.stop)?;
        for (name, value) in self.extra.others() {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl Body<'_> {
    /// Writes a field, with the user's change applied.
    fn put<M: SerializeMap>(
        &self,
        map: &mut M,
        name: &str,
        value: &impl Serialize,
    ) -> std::result::Result<(), M::Error> {
        match self.extra.change(name) {
            Change::None => map.serialize_entry(name, value),
            Change::Drop => Ok(()),
            Change::Rename(name) => map.serialize_entry(name, value),
            Change::Set(value) => map.serialize_entry(name, value),
        }
    }

    /// Writes a field only if it has an effect (`says`) or the user sets it.
    fn put_if<M: SerializeMap>(
        &self,
        says: bool,
        map: &mut M,
        name: &str,
        value: &impl Serialize,
    ) -> std::result::Result<(), M::Error> {
        if says || matches!(self.extra.change(name), Change::Set(_)) {
            self.put(map, name, value)?;
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct StreamOptions {
    include_usage: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) body: Vec<u8>,
    /// The prompt sent to `/completions`.
    pub(super) prompt: Option<Sent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum Sent {
    Text(String),
    /// Made by the local tokenizer. In a text prompt, the server would turn special tokens spelled
    /// out in a message into real ones, and many servers would add a second BOS token before the
    /// template's own.
    Tokens(Vec<u32>),
}

/// Builds the body of a request.
///
/// # Errors
/// The local chat template rejects the conversation.
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
        ignore_eos: request.ignore_eos,
        stop: &request.options.stop,
        extra: &config.endpoint_extra,
    };
    let body = serde_json::to_vec(&body).or_exit(Exit::FlowFailed, || {
        "failed to write the request as JSON".to_owned()
    })?;
    Ok(Outgoing { body, prompt })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Origin, RequestOptions, Role, Sampling};

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
            ]
            .into(),
            max_tokens: 48,
            ignore_eos: false,
            sampling: Sampling::default(),
            options: RequestOptions::default(),
        }
    }

    fn body(request: &Request, endpoint_api: EndpointApi) -> String {
        body_with(request, endpoint_api, "{}")
    }

    fn body_with(request: &Request, endpoint_api: EndpointApi, extra: &str) -> String {
        let config = RemoteConfig {
            endpoint_api,
            endpoint_extra: EndpointExtra::parse(extra).expect("an object"),
            ..RemoteConfig::plain("http://host/v1")
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
    fn sampling_options_are_sent_if_they_have_an_effect() {
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

    #[test]
    fn extra_drops_renames_and_sets_fields() {
        let body = |extra: &str| body_with(&request(), EndpointApi::Chat, extra);
        let renamed = body(r#"{"max_tokens": {"rename": "max_completion_tokens"}}"#);
        assert!(
            renamed.contains(r#","max_completion_tokens":48,"#),
            "{renamed}"
        );
        assert!(!renamed.contains("max_tokens\":"), "{renamed}");
        let bare = body(
            r#"{"max_tokens": null, "temperature": null, "top_p": null, "seed": null, "top_k": null,
                "stream_options": null, "model": null, "min_p": null}"#,
        );
        assert!(bare.starts_with(r#"{"messages":["#), "{bare}");
        assert!(bare.ends_with(r#"],"stream":true}"#), "{bare}");
        let set = body(
            r#"{"temperature": 1, "top_k": 20, "model": "other", "ignore_eos": true, "min_p": 0.1,
                "stream_options": {"include_usage": true, "continuous_usage_stats": true}}"#,
        );
        for part in [
            r#"{"model":"other","#,
            r#""temperature":1,"top_p":1.0,"top_k":20,"seed":0,"#,
            r#""stream_options":{"continuous_usage_stats":true,"include_usage":true}"#,
            r#","ignore_eos":true,"min_p":0.1}"#,
        ] {
            assert!(set.contains(part), "{part}: {set}");
        }
    }
}
