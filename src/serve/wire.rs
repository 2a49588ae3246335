//! What clients send: the bodies of OpenAI's `/v1/chat/completions` and `/v1/completions` (API reference,
//! "Create chat completion" and "Create completion"), and the extensions `top_k` and `ignore_eos` of other
//! servers. A field that would change the answer and is not supported is refused by name.

use std::sync::Arc;

use serde_json::{Value, json};

use super::errors::{ApiError, ApiResult};
use super::fields::Fields;
use crate::engine::{Message, Role, Sampling};

/// Most choices of one request, as OpenAI has it.
const MOST_CHOICES: i128 = 128;

/// Most stop strings of one request, as OpenAI has it.
const MOST_STOPS: usize = 4;

/// Tokens of a plain completion that sets no limit, as OpenAI has it.
const PLAIN_TOKENS: usize = 16;

/// A request as understood.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) model: String,
    pub(super) messages: Arc<[Message]>,
    /// Whether the messages are a conversation; otherwise there is one, whose content is the prompt.
    pub(super) is_chat: bool,
    /// `None`: as many as fit.
    pub(super) max_tokens: Option<usize>,
    /// The seed is in `seed`.
    pub(super) sampling: Sampling,
    pub(super) seed: Option<u64>,
    pub(super) choices: usize,
    pub(super) stop: Arc<[String]>,
    pub(super) ignore_eos: bool,
    pub(super) stream: bool,
    pub(super) include_usage: bool,
}

impl Asked {
    /// Reads the body of `/v1/chat/completions`.
    ///
    /// # Errors
    /// 400, with the field that is wrong.
    pub(super) fn chat(body: &[u8]) -> ApiResult<Self> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let messages = messages(&mut fields)?;
        let new_limit = limit(&mut fields, "max_completion_tokens")?;
        let old_limit = limit(&mut fields, "max_tokens")?;
        if let (Some(one), Some(other)) = (old_limit, new_limit)
            && one != other
        {
            return Err(ApiError::field(
                "max_tokens",
                "invalid_value",
                "'max_tokens' and 'max_completion_tokens' are both given, and differ.",
            ));
        }
        let later = "this server has no constrained decoding and no tool calls yet";
        fields.only("tools", is_empty, later)?;
        fields.only("functions", is_empty, later)?;
        let none = |value: &Value| value == "none" || value == "auto";
        fields.only("tool_choice", none, later)?;
        fields.only("function_call", none, later)?;
        fields.only("parallel_tool_calls", |_| false, later)?;
        fields.only(
            "response_format",
            |format| *format == json!({"type": "text"}),
            later,
        )?;
        fields.only(
            "logprobs",
            |value| *value == false,
            "log probabilities are not returned",
        )?;
        fields.only(
            "top_logprobs",
            |_| false,
            "log probabilities are not returned",
        )?;
        let text = |value: &Value| *value == json!(["text"]);
        fields.only("modalities", text, "answers are text")?;
        fields.only("audio", |_| false, "answers are text")?;
        fields.only(
            "prediction",
            |_| false,
            "outputs are not predicted by the client",
        )?;
        fields.only(
            "reasoning_effort",
            |_| false,
            "the model decides how it reasons",
        )?;
        fields.only(
            "verbosity",
            |_| false,
            "the model decides how much it writes",
        )?;
        fields.only("web_search_options", |_| false, "there is no web search")?;
        let asked = Self::common(fields, model, messages)?;
        Ok(Self {
            max_tokens: new_limit.or(old_limit),
            ..asked
        })
    }

    /// Reads the body of `/v1/completions`.
    ///
    /// # Errors
    /// 400, with the field that is wrong.
    pub(super) fn plain(body: &[u8]) -> ApiResult<Self> {
        let mut fields = Fields::parse(body)?;
        let model = model(&mut fields)?;
        let prompt = prompt(&mut fields)?;
        let max_tokens = limit(&mut fields, "max_tokens")?;
        fields.only(
            "echo",
            |value| *value == false,
            "the prompt is not repeated",
        )?;
        fields.only("suffix", |value| value == "", "text is not inserted")?;
        fields.only("best_of", |value| *value == 1, "every choice is returned")?;
        fields.only("logprobs", |_| false, "log probabilities are not returned")?;
        let messages = vec![Message {
            role: Role::User,
            content: prompt,
        }];
        let asked = Self::common(fields, model, messages)?;
        Ok(Self {
            is_chat: false,
            max_tokens: Some(max_tokens.unwrap_or(PLAIN_TOKENS)),
            ..asked
        })
    }

    /// The fields that both have.
    fn common(mut fields: Fields, model: String, messages: Vec<Message>) -> ApiResult<Self> {
        let temperature = fields.decimal("temperature", 0.0, 2.0)?.unwrap_or(1.0);
        let top_p = fields.decimal("top_p", 0.0, 1.0)?.unwrap_or(1.0);
        // -1 means all in vLLM.
        let top_k = fields
            .integer("top_k", -1, i128::from(u32::MAX))?
            .unwrap_or(0);
        let seed = fields.integer("seed", i128::from(i64::MIN), i128::from(u64::MAX))?;
        let choices = fields.integer("n", 1, MOST_CHOICES)?.unwrap_or(1);
        let stop = stops(&mut fields)?;
        let ignore_eos = fields.boolean("ignore_eos")?.unwrap_or(false);
        let stream = fields.boolean("stream")?.unwrap_or(false);
        let include_usage = include_usage(&mut fields, stream)?;
        let zero = |value: &Value| value.as_f64() == Some(0.0);
        let one = |value: &Value| value.as_f64() == Some(1.0);
        fields.only("min_p", zero, "use 'top_p' or 'top_k'")?;
        let penalty = "there are no penalties";
        fields.only("frequency_penalty", zero, penalty)?;
        fields.only("presence_penalty", zero, penalty)?;
        fields.only("repetition_penalty", one, penalty)?;
        fields.only("logit_bias", is_empty, "the logits stay as they are")?;
        let is_default = |value: &Value| value == "auto" || value == "default";
        fields.only("service_tier", is_default, "there is one tier")?;
        fields.only("store", |value| *value == false, "nothing is stored")?;
        // Who asks, and for whom: no answer depends on it.
        fields.skip(&["user", "metadata", "safety_identifier", "prompt_cache_key"]);
        fields.end()?;
        Ok(Self {
            model,
            messages: messages.into(),
            is_chat: true,
            max_tokens: None,
            sampling: Sampling {
                temperature: temperature as f32,
                top_p: top_p as f32,
                top_k: usize::try_from(top_k).unwrap_or(0),
                seed: 0,
            },
            // In two's complement, so that all 64-bit seeds, signed or not, are accepted and differ.
            seed: seed.map(|seed| seed as u64),
            choices: usize::try_from(choices).unwrap_or(1),
            stop,
            ignore_eos,
            stream,
            include_usage,
        })
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(values) => values.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

fn missing(param: &str) -> ApiError {
    ApiError::field(
        param,
        "missing_required_parameter",
        format!("Missing required parameter: '{param}'."),
    )
}

fn model(fields: &mut Fields) -> ApiResult<String> {
    fields.string("model")?.ok_or_else(|| missing("model"))
}

fn limit(fields: &mut Fields, name: &str) -> ApiResult<Option<usize>> {
    let tokens = fields.integer(name, 1, i128::from(u32::MAX))?;
    Ok(tokens.and_then(|tokens| usize::try_from(tokens).ok()))
}

fn messages(fields: &mut Fields) -> ApiResult<Vec<Message>> {
    let messages = (fields.array("messages")?).ok_or_else(|| missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::field(
            "messages",
            "empty_array",
            "Invalid 'messages': empty array. Expected an array with at least one message.",
        ));
    }
    let messages = messages.into_iter().enumerate();
    messages
        .map(|(index, value)| message(&format!("messages[{index}]"), value))
        .collect()
}

fn message(param: &str, value: Value) -> ApiResult<Message> {
    let mut fields = Fields::of(param, value)?;
    let place = fields.param("role");
    let role = fields.string("role")?.ok_or_else(|| missing(&place))?;
    let role = match role.as_str() {
        // The name of `system` for OpenAI's newer models.
        "system" | "developer" => Role::System,
        "user" => Role::User,
        "assistant" => Role::Assistant,
        "tool" | "function" => {
            return Err(ApiError::unsupported(
                &place,
                format!(
                    "'{place}' is '{role}', which is not supported: this server has no tool calls yet."
                ),
            ));
        }
        other => {
            return Err(ApiError::field(
                &place,
                "invalid_value",
                format!(
                    "Invalid value: '{other}'. Supported values are: 'system', 'developer', 'user' and \
                     'assistant'."
                ),
            ));
        }
    };
    let place = fields.param("content");
    let content = fields.take("content").ok_or_else(|| missing(&place))?;
    let content = text_of(&place, content)?;
    let later = "this server has no tool calls yet";
    fields.only("tool_calls", is_empty, later)?;
    fields.only("function_call", |_| false, later)?;
    fields.only("tool_call_id", |_| false, later)?;
    fields.only("name", |_| false, "chat templates know roles, not names")?;
    fields.only("audio", |_| false, "messages are text")?;
    // Clients send answers back as they got them, empty lists and all.
    fields.only("annotations", is_empty, "messages are text")?;
    fields.end()?;
    Ok(Message { role, content })
}

/// The text of a message's content: a string, or parts of type `text`.
fn text_of(param: &str, content: Value) -> ApiResult<String> {
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => {
            return Err(ApiError::field(
                param,
                "invalid_type",
                format!("Invalid type for '{param}': expected a string or an array of parts."),
            ));
        }
    };
    let mut content = String::new();
    for (index, part) in parts.into_iter().enumerate() {
        let mut part = Fields::of(&format!("{param}[{index}]"), part)?;
        let place = part.param("type");
        let kind = part.string("type")?.ok_or_else(|| missing(&place))?;
        if kind != "text" {
            return Err(ApiError::unsupported(
                &place,
                format!("'{place}' is '{kind}', which is not supported: messages are text."),
            ));
        }
        let place = part.param("text");
        content.push_str(&part.string("text")?.ok_or_else(|| missing(&place))?);
        part.end()?;
    }
    Ok(content)
}

fn prompt(fields: &mut Fields) -> ApiResult<String> {
    match fields.take("prompt") {
        None => Err(missing("prompt")),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(mut prompts)) if prompts.len() == 1 && prompts[0].is_string() => {
            match prompts.swap_remove(0) {
                Value::String(text) => Ok(text),
                _ => Err(missing("prompt")),
            }
        }
        Some(Value::Array(_)) => Err(ApiError::unsupported(
            "prompt",
            "'prompt' as an array of several prompts or of tokens is not supported: send one string.",
        )),
        Some(_) => Err(ApiError::field(
            "prompt",
            "invalid_type",
            "Invalid type for 'prompt': expected a string.",
        )),
    }
}

fn stops(fields: &mut Fields) -> ApiResult<Arc<[String]>> {
    let stops = match fields.take("stop") {
        None => Vec::new(),
        Some(Value::Array(stops)) => stops,
        Some(one) => vec![one],
    };
    if stops.len() > MOST_STOPS {
        return Err(ApiError::field(
            "stop",
            "array_above_max_length",
            format!(
                "Invalid 'stop': array too long. Expected an array with maximum length {MOST_STOPS}, but got \
                 an array with length {} instead.",
                stops.len()
            ),
        ));
    }
    let stops = stops.into_iter().map(|stop| match stop {
        Value::String(text) if !text.is_empty() => Ok(text),
        Value::String(_) => Err(ApiError::field(
            "stop",
            "invalid_value",
            "Invalid 'stop': a stop string may not be empty.",
        )),
        _ => Err(ApiError::field(
            "stop",
            "invalid_type",
            "Invalid type for 'stop': expected a string or an array of strings.",
        )),
    });
    stops.collect::<ApiResult<Vec<String>>>().map(Arc::from)
}

fn include_usage(fields: &mut Fields, stream: bool) -> ApiResult<bool> {
    let Some(mut options) = fields.object("stream_options")? else {
        return Ok(false);
    };
    if !stream {
        return Err(ApiError::field(
            "stream_options",
            "invalid_value",
            "'stream_options' is only allowed when 'stream' is true.",
        ));
    }
    let include_usage = options.boolean("include_usage")?.unwrap_or(false);
    let no = |value: &Value| *value == false;
    options.only("include_obfuscation", no, "chunks are not padded")?;
    options.end()?;
    Ok(include_usage)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(body: Value) -> ApiResult<Asked> {
        Asked::chat(body.to_string().as_bytes())
    }

    fn with(name: &str, value: Value) -> ApiResult<Asked> {
        let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "Hi"}]});
        body[name] = value;
        chat(body)
    }

    fn error(asked: ApiResult<Asked>) -> Value {
        let error = asked.expect_err("refused");
        serde_json::from_str(&error.json()).expect("JSON")
    }

    #[test]
    fn a_plain_chat_has_openais_defaults() {
        let asked = with("user", json!("me")).expect("sound");
        assert_eq!(asked.sampling.temperature, 1.0);
        assert_eq!(
            (asked.choices, asked.seed, asked.max_tokens),
            (1, None, None)
        );
        assert!(!asked.stream && asked.is_chat && asked.stop.is_empty());
    }

    #[test]
    fn values_without_effect_are_accepted() {
        for (name, value) in [
            ("tools", json!([])),
            ("tool_choice", json!("none")),
            ("response_format", json!({"type": "text"})),
            ("logprobs", json!(false)),
            ("logit_bias", json!({})),
            ("frequency_penalty", json!(0)),
            ("presence_penalty", json!(0.0)),
            ("min_p", json!(0)),
            ("top_k", json!(-1)),
            ("top_logprobs", json!(null)),
            ("anything", json!(null)),
            ("store", json!(false)),
            ("stop", json!(null)),
            ("metadata", json!({"a": "b"})),
            ("seed", json!(-1)),
            ("max_tokens", json!(5.0)),
        ] {
            let asked = with(name, value.clone());
            assert!(asked.is_ok(), "{name} {value}: {asked:?}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_name() {
        for (name, value) in [
            ("tools", json!([{"type": "function"}])),
            ("tool_choice", json!("required")),
            ("functions", json!([{}])),
            ("parallel_tool_calls", json!(true)),
            ("response_format", json!({"type": "json_object"})),
            ("logprobs", json!(true)),
            ("top_logprobs", json!(3)),
            ("logit_bias", json!({"1": 2})),
            ("frequency_penalty", json!(0.5)),
            ("presence_penalty", json!(-1)),
            ("repetition_penalty", json!(1.1)),
            ("min_p", json!(0.1)),
            ("modalities", json!(["audio"])),
            ("reasoning_effort", json!("low")),
            ("service_tier", json!("flex")),
            ("store", json!(true)),
        ] {
            let error = error(with(name, value));
            assert_eq!(error["error"]["param"], name);
            assert_eq!(error["error"]["code"], "unsupported_parameter");
            assert_eq!(error["error"]["type"], "invalid_request_error");
        }
        let unknown = error(with("temprature", json!(1)));
        assert_eq!(unknown["error"]["code"], "unknown_parameter");
        assert_eq!(
            unknown["error"]["message"],
            "Unknown parameter: 'temprature'."
        );
    }

    #[test]
    fn wrong_values_name_their_field_and_code() {
        for (name, value, code) in [
            ("n", json!(0), "integer_below_min_value"),
            ("n", json!(1_000_000_000), "integer_above_max_value"),
            ("n", json!("2"), "invalid_type"),
            ("n", json!(1.5), "invalid_type"),
            ("temperature", json!(-0.1), "decimal_below_min_value"),
            ("temperature", json!(2.1), "decimal_above_max_value"),
            ("temperature", json!("hot"), "invalid_type"),
            ("top_p", json!(1.1), "decimal_above_max_value"),
            ("top_k", json!(-2), "integer_below_min_value"),
            ("seed", json!(1e30), "integer_above_max_value"),
            ("max_tokens", json!(0), "integer_below_min_value"),
            (
                "max_completion_tokens",
                json!(-1),
                "integer_below_min_value",
            ),
            (
                "stop",
                json!(["a", "b", "c", "d", "e"]),
                "array_above_max_length",
            ),
            ("stop", json!(""), "invalid_value"),
            ("stop", json!([1]), "invalid_type"),
            ("stream", json!("yes"), "invalid_type"),
            ("stream_options", json!({}), "invalid_value"),
            ("ignore_eos", json!(1), "invalid_type"),
            ("model", json!(3), "invalid_type"),
            ("model", json!(null), "missing_required_parameter"),
            ("messages", json!(null), "missing_required_parameter"),
            ("messages", json!([]), "empty_array"),
            ("messages", json!("Hi"), "invalid_type"),
        ] {
            let error = error(with(name, value.clone()));
            assert_eq!(error["error"]["param"], name, "{value}");
            assert_eq!(error["error"]["code"], code, "{name} {value}");
        }
    }

    #[test]
    fn messages_are_checked_one_by_one() {
        for (message, param, code) in [
            (json!("Hi"), "messages[0]", "invalid_type"),
            (
                json!({"content": "Hi"}),
                "messages[0].role",
                "missing_required_parameter",
            ),
            (
                json!({"role": "wizard", "content": "Hi"}),
                "messages[0].role",
                "invalid_value",
            ),
            (
                json!({"role": "tool", "content": "Hi"}),
                "messages[0].role",
                "unsupported_parameter",
            ),
            (
                json!({"role": "user"}),
                "messages[0].content",
                "missing_required_parameter",
            ),
            (
                json!({"role": "user", "content": 3}),
                "messages[0].content",
                "invalid_type",
            ),
            (
                json!({"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
                "messages[0].content[0].type",
                "unsupported_parameter",
            ),
            (
                json!({"role": "user", "content": "Hi", "name": "me"}),
                "messages[0].name",
                "unsupported_parameter",
            ),
            (
                json!({"role": "user", "content": "Hi", "mood": "good"}),
                "messages[0].mood",
                "unknown_parameter",
            ),
        ] {
            let error = error(with("messages", json!([message])));
            assert_eq!(error["error"]["param"], param);
            assert_eq!(error["error"]["code"], code);
        }
        // An answer of this server, sent back as the client's library has it.
        let echoed = json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": "c", "refusal": null, "annotations": [], "tool_calls": null},
        ]);
        let asked = with("messages", echoed).expect("sound");
        assert_eq!(asked.messages[0].role, Role::System);
        assert_eq!(asked.messages[0].content, "ab");
        assert_eq!(asked.messages[1].role, Role::Assistant);
    }

    #[test]
    fn a_plain_prompt_is_one_string() {
        let plain = |body: Value| Asked::plain(body.to_string().as_bytes());
        let asked = plain(json!({"model": "m", "prompt": ["once"]})).expect("sound");
        assert_eq!(asked.messages[0].content, "once");
        assert_eq!(asked.max_tokens, Some(16));
        for prompt in [json!([1, 2]), json!(["a", "b"]), json!([])] {
            let error = error(plain(json!({"model": "m", "prompt": prompt})));
            assert_eq!(error["error"]["param"], "prompt");
        }
    }

    #[test]
    fn bodies_that_are_no_object_are_refused() {
        for body in ["", "{", "[]", "3", "{\"a\": 1e999}", "\u{0}"] {
            let error = error(Asked::chat(body.as_bytes()));
            assert_eq!(error["error"]["type"], "invalid_request_error");
        }
        let deep = "[".repeat(100_000);
        assert!(Asked::chat(deep.as_bytes()).is_err());
        assert!(Asked::chat(b"\xff\xfe").is_err());
    }
}
