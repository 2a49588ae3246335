//! Flags and variables of `MODE=remote`.

use std::path::PathBuf;

use clap::Args;
use ureq::http::header::AUTHORIZATION;

use super::{ProcessEnv, parse_count};
use crate::config::{
    ApiKey, Endpoint, EndpointApi, EndpointExtra, Headers, Mode, Proxy, RemoteConfig, RetryPolicy,
    Server,
};
use crate::error::{Error, Result};

/// Options that `run` and `doctor` share.
#[derive(Debug, Clone, Args)]
pub(super) struct ServerArgs {
    /// Base URL of the server for MODE=remote, such as http://127.0.0.1:8000/v1; the key is read
    /// only from the API_KEY variable, and MODEL is the served model's name
    // Parsed later, and its value is hidden: it may contain a secret.
    #[arg(long, env, value_name = "ENDPOINT", hide_env_values = true)]
    endpoint: Option<String>,

    /// JSON object that changes every request: {"repeat_penalty": 1.0} sets a field, {"seed": null}
    /// removes one, {"max_tokens": {"rename": "max_completion_tokens"}} renames one; it is stored
    /// in the run record
    #[arg(long, env, value_name = "ENDPOINT_EXTRA", default_value = "{}", hide_default_value = true, value_parser = EndpointExtra::parse)]
    endpoint_extra: EndpointExtra,

    /// JSON object of extra request headers; $NAME and ${NAME} in a value expand to environment
    /// variables: {"api-key": "$AZURE_KEY"}. Names are stored in the run record, values are not
    // Parsed later, and its value is hidden: it may contain a secret.
    #[arg(long, env, value_name = "ENDPOINT_HEADERS", hide_env_values = true)]
    endpoint_headers: Option<String>,

    /// Connection timeout in seconds
    #[arg(long, env, value_name = "CONNECT_TIMEOUT", default_value = "10", value_parser = parse_seconds)]
    connect_timeout: f64,
}

#[derive(Debug, Clone, Args)]
pub(super) struct RemoteArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// API of the server to use
    #[arg(long, env, value_name = "ENDPOINT_API", default_value = "chat")]
    endpoint_api: EndpointApi,

    /// Local copy of the served model's tokenizer (a .gguf file, a model folder, or a
    /// tokenizer.json); cross-checks the server's token counts, and renders prompts for
    /// ENDPOINT_API=completions
    #[arg(long, env, value_name = "TOKENIZER")]
    tokenizer: Option<PathBuf>,

    /// Timeout in seconds for the first token of an answer
    #[arg(long, env, value_name = "FIRST_TOKEN_TIMEOUT", default_value = "300", value_parser = parse_seconds)]
    first_token_timeout: f64,

    /// Timeout in seconds between tokens
    #[arg(long, env, value_name = "TOKEN_TIMEOUT", default_value = "60", value_parser = parse_seconds)]
    token_timeout: f64,

    /// Timeout in seconds for a request, all attempts included
    #[arg(long, env, value_name = "REQUEST_TIMEOUT", default_value = "600", value_parser = parse_seconds)]
    request_timeout: f64,

    /// Maximum attempts per request; connection failures, 429 responses, interrupted streams,
    /// timeouts and server errors are retried
    #[arg(long, env, value_name = "MAX_ATTEMPTS", default_value = "4", value_parser = parse_count)]
    max_attempts: usize,

    /// Delay in seconds before the first retry; it doubles with each further retry
    #[arg(long, env, value_name = "RETRY_DELAY", default_value = "0.5", value_parser = parse_seconds)]
    retry_delay: f64,

    /// Wait up to this many seconds before the run for a server that is still starting or loading
    /// its model
    #[arg(long, env, value_name = "WAIT_READY", default_value = "0", value_parser = parse_wait)]
    wait_ready: f64,
}

impl ServerArgs {
    /// Returns the server, with defaults for all other settings.
    fn resolve(self, environment: &ProcessEnv) -> Result<RemoteConfig> {
        let Some(endpoint) = self.endpoint else {
            return Err(
                Error::usage("MODE is remote, but ENDPOINT is not set").hint(
                    "set ENDPOINT (--endpoint) to the server's base URL, such as \
                 http://127.0.0.1:8000/v1",
                ),
            );
        };
        let variable = |name: &str| environment.text(name);
        let endpoint = Endpoint::parse(&endpoint)?;
        let headers = self.endpoint_headers.as_deref();
        let endpoint_headers = Headers::parse(headers.unwrap_or("{}"), variable)?;
        let api_key = environment.api_key().map(ApiKey::new).transpose()?;
        if api_key.is_some() && endpoint_headers.has(&AUTHORIZATION) {
            return Err(
                Error::usage("API_KEY and ENDPOINT_HEADERS both give Authorization")
                    .hint("unset API_KEY or remove the header; API_KEY is sent as `Bearer`"),
            );
        }
        let (scheme, host, port) = (endpoint.scheme(), endpoint.host(), endpoint.port());
        Ok(RemoteConfig {
            server: Server {
                proxy: Proxy::find(scheme, host, port, variable)?,
                endpoint,
                api_key,
                trust: environment.trust(),
                tokenizer: None,
                wait_ready_s: 0.0,
            },
            endpoint_api: EndpointApi::Chat,
            endpoint_extra: self.endpoint_extra,
            endpoint_headers,
            retry: RetryPolicy {
                connect_timeout_s: self.connect_timeout,
                ..RetryPolicy::default()
            },
        })
    }

    /// Returns the settings if `flowbench doctor` has a server to check: an endpoint is given, or
    /// `MODE` is `remote`.
    pub(super) fn resolve_for_doctor(
        self,
        mode: Option<Mode>,
        environment: &ProcessEnv,
    ) -> Result<Option<RemoteConfig>> {
        if self.endpoint.is_none() && mode != Some(Mode::Remote) {
            return Ok(None);
        }
        self.resolve(environment).map(Some)
    }
}

impl RemoteArgs {
    /// Returns the settings in `MODE=remote`.
    pub(super) fn resolve(
        self,
        mode: Mode,
        environment: &ProcessEnv,
    ) -> Result<Option<RemoteConfig>> {
        if mode != Mode::Remote {
            return match self.server.endpoint {
                None => Ok(None),
                Some(_) => Err(Error::usage(format!(
                    "ENDPOINT is set, but MODE is {}",
                    mode.as_str()
                ))
                .hint("set MODE=remote to use the server, or unset ENDPOINT")),
            };
        }
        let plain = self.server.resolve(environment)?;
        Ok(Some(RemoteConfig {
            endpoint_api: self.endpoint_api,
            server: Server {
                tokenizer: self.tokenizer,
                wait_ready_s: self.wait_ready,
                ..plain.server
            },
            retry: RetryPolicy {
                first_token_timeout_s: self.first_token_timeout,
                token_timeout_s: self.token_timeout,
                request_timeout_s: self.request_timeout,
                max_attempts: self.max_attempts,
                retry_delay_s: self.retry_delay,
                ..plain.retry
            },
            ..plain
        }))
    }
}

fn parse_seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if seconds > 0.0 && seconds <= 86_400.0 => Ok(seconds),
        _ => Err("expected a time in seconds, above 0 and at most a day (86400)".to_owned()),
    }
}

fn parse_wait(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("expected a time in seconds, from 0 (no wait) to a day (86400)".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_positive_and_at_most_a_day() {
        for bad in ["0", "-1", "nan", "inf", "1d", "", "86401"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_seconds("0.25"), Ok(0.25));
        for bad in ["-1", "nan", "inf", "1d", "", "86401"] {
            assert!(parse_wait(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_wait("0"), Ok(0.0));
    }
}
