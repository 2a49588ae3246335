//! Flags and variables of `MODE=remote`.

use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value};

use super::parse_count;
use crate::config::{ApiKey, Endpoint, EndpointApi, Mode, Patience, RemoteConfig};
use crate::error::{Error, Result};

/// The server and how it is asked.
#[derive(Debug, Clone, Args)]
pub(super) struct RemoteArgs {
    /// The server of MODE=remote: a base URL such as http://127.0.0.1:8000/v1, whose key is taken from
    /// the variable API_KEY alone; MODEL then is the name that it serves the model by
    // It is read later, and its value is not shown: it may hold what should not be printed.
    #[arg(long, env, value_name = "ENDPOINT", hide_env_values = true)]
    endpoint: Option<String>,

    /// Which of its interfaces is asked
    #[arg(long, env, value_name = "ENDPOINT_API", default_value = "chat")]
    endpoint_api: EndpointApi,

    /// A JSON object of what every request is to say besides, in the server's own terms, such as
    /// {"repeat_penalty": 1.0}; it is recorded
    #[arg(long, env, value_name = "ENDPOINT_EXTRA", default_value = "{}", hide_default_value = true, value_parser = parse_extra)]
    endpoint_extra: Map<String, Value>,

    /// The served model's tokenizer on this machine (a .gguf file, a model's folder, or its
    /// tokenizer.json): counts tokens beside the server, renders prompts for completions
    #[arg(long, env, value_name = "TOKENIZER")]
    tokenizer: Option<PathBuf>,

    /// Seconds to wait for a connection
    #[arg(long, env, value_name = "CONNECT_TIMEOUT", default_value = "10", value_parser = parse_seconds)]
    connect_timeout: f64,

    /// Seconds to wait for the first token of an answer
    #[arg(long, env, value_name = "FIRST_TOKEN_TIMEOUT", default_value = "300", value_parser = parse_seconds)]
    first_token_timeout: f64,

    /// Seconds to wait for each further token
    #[arg(long, env, value_name = "TOKEN_TIMEOUT", default_value = "60", value_parser = parse_seconds)]
    token_timeout: f64,

    /// Seconds that a request may take, all attempts together
    #[arg(long, env, value_name = "REQUEST_TIMEOUT", default_value = "600", value_parser = parse_seconds)]
    request_timeout: f64,

    /// How often a request is tried: one that found no connection, was put off (429), broken off, took
    /// too long or met an error of the server
    #[arg(long, env, value_name = "MAX_ATTEMPTS", default_value = "4", value_parser = parse_count)]
    max_attempts: usize,

    /// Seconds before the second attempt; they double from attempt to attempt
    #[arg(long, env, value_name = "RETRY_DELAY", default_value = "0.5", value_parser = parse_seconds)]
    retry_delay: f64,
}

impl RemoteArgs {
    /// The settings, in `MODE=remote`.
    pub(super) fn resolve(self, mode: Mode, api_key: Option<&str>) -> Result<Option<RemoteConfig>> {
        if mode != Mode::Remote {
            return match self.endpoint {
                None => Ok(None),
                Some(_) => Err(Error::usage(format!(
                    "ENDPOINT is set, but MODE is {}",
                    mode.as_str()
                ))
                .hint("MODE=remote asks a server; without it, unset ENDPOINT")),
            };
        }
        let Some(endpoint) = self.endpoint else {
            return Err(
                Error::usage("MODE is remote, but ENDPOINT is not set").hint(
                    "let ENDPOINT (--endpoint) be the server's base URL, such as \
                 http://127.0.0.1:8000/v1",
                ),
            );
        };
        Ok(Some(RemoteConfig {
            endpoint: Endpoint::parse(&endpoint)?,
            api_key: api_key.map(ApiKey::new).transpose()?,
            endpoint_api: self.endpoint_api,
            endpoint_extra: self.endpoint_extra,
            tokenizer: self.tokenizer,
            patience: Patience {
                connect_timeout_s: self.connect_timeout,
                first_token_timeout_s: self.first_token_timeout,
                token_timeout_s: self.token_timeout,
                request_timeout_s: self.request_timeout,
                max_attempts: self.max_attempts,
                retry_delay_s: self.retry_delay,
            },
        }))
    }
}

/// What the run says itself, and nobody else may.
const OURS: [&str; 11] = [
    "ignore_eos",
    "max_tokens",
    "messages",
    "model",
    "prompt",
    "seed",
    "stream",
    "stream_options",
    "temperature",
    "top_k",
    "top_p",
];

fn parse_extra(text: &str) -> Result<Map<String, Value>, String> {
    let Ok(extra) = serde_json::from_str::<Map<String, Value>>(text) else {
        return Err("expected a JSON object, such as {\"repeat_penalty\": 1.0}".to_owned());
    };
    match OURS.iter().find(|name| extra.contains_key(**name)) {
        None => Ok(extra),
        Some(name) => Err(format!(
            "`{name}` is for the template and the run's settings to say"
        )),
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("expected a time in seconds, above 0 and up to a day (86400)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_besides_is_an_object_of_other_members() {
        for bad in ["", "1", "[]", "{", r#"{"a": 1} b"#] {
            assert!(
                parse_extra(bad).is_err_and(|why| why.contains("JSON object")),
                "{bad}"
            );
        }
        let taken = parse_extra(r#"{"min_p": 0, "seed": 4}"#).expect_err("the run's");
        assert!(taken.contains("`seed`"), "{taken}");
        let extra = parse_extra(
            r#"{"repeat_penalty": 1.0, "chat_template_kwargs": {"enable_thinking": false}}"#,
        );
        assert_eq!(extra.expect("sound").len(), 2);
    }

    #[test]
    fn times_are_positive_and_up_to_a_day() {
        for bad in ["0", "-1", "nan", "inf", "1d", "", "86401"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_seconds("0.25"), Ok(0.25));
    }
}
