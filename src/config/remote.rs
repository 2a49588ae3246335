//! What `MODE=remote` needs to know: the endpoint, its key, and how patient the run is.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};
use ureq::http::Uri;

use crate::error::{Error, Result};

/// Which of an endpoint's interfaces is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EndpointApi {
    /// `/chat/completions`: the server renders the conversation.
    Chat,
    /// `/completions`: the conversation is rendered here, by the chat template that comes with the
    /// tokenizer, or plainly.
    Completions,
}

/// Most flows in flight where no number is asked for.
pub const MOST_FLOWS_IN_FLIGHT: usize = 256;

/// Everything that the remote engine needs to know.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RemoteConfig {
    /// The server.
    pub endpoint: Endpoint,
    /// What it wants to be shown. Never recorded.
    #[serde(skip)]
    pub api_key: Option<ApiKey>,
    /// Which of its interfaces is asked.
    pub endpoint_api: EndpointApi,
    /// Members that every request has beside those of the run: what the server alone knows.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub endpoint_extra: serde_json::Map<String, serde_json::Value>,
    /// The model's tokenizer on this machine: a `.gguf` file, a folder, or its `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// How long it is waited, and how often it is tried.
    #[serde(flatten)]
    pub patience: Patience,
}

/// How long a request is waited for, and how often it is tried. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Patience {
    /// Longest wait for a connection, its name's resolution included.
    pub connect_timeout_s: f64,
    /// Longest wait for a first token, from the start of the attempt.
    pub first_token_timeout_s: f64,
    /// Longest wait between two tokens.
    pub token_timeout_s: f64,
    /// Longest time of a request, from the start of its first attempt, all attempts included.
    pub request_timeout_s: f64,
    /// Most attempts of a request, at least 1.
    pub max_attempts: usize,
    /// The first wait before another attempt; it doubles from attempt to attempt.
    pub retry_delay_s: f64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect_timeout_s: 10.0,
            first_token_timeout_s: 300.0,
            token_timeout_s: 60.0,
            request_timeout_s: 600.0,
            max_attempts: 4,
            retry_delay_s: 0.5,
        }
    }
}

impl Patience {
    /// [`Self::connect_timeout_s`].
    pub fn connect(&self) -> Duration {
        Duration::from_secs_f64(self.connect_timeout_s)
    }

    /// [`Self::first_token_timeout_s`].
    pub fn first_token(&self) -> Duration {
        Duration::from_secs_f64(self.first_token_timeout_s)
    }

    /// [`Self::token_timeout_s`].
    pub fn token(&self) -> Duration {
        Duration::from_secs_f64(self.token_timeout_s)
    }

    /// [`Self::request_timeout_s`].
    pub fn request(&self) -> Duration {
        Duration::from_secs_f64(self.request_timeout_s)
    }

    /// [`Self::retry_delay_s`].
    pub fn retry_delay(&self) -> Duration {
        Duration::from_secs_f64(self.retry_delay_s)
    }
}

/// Where the server is. Shown, recorded and printed in errors without its query, which may hold a
/// secret; one with a user's name or password is refused.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host, port and path, without a slash at the end.
    base: String,
    /// What is behind a `?`; it goes to the server with every request.
    query: Option<String>,
}

impl Endpoint {
    /// Reads a base URL, such as `http://127.0.0.1:8000/v1`.
    ///
    /// # Errors
    /// Exit code 2 for what is none. The text is not shown, since it may hold a password.
    pub fn parse(text: &str) -> Result<Self> {
        let hint = "ENDPOINT (--endpoint) is a base URL, such as http://127.0.0.1:8000/v1; the key \
                    stands in API_KEY";
        let refuse = |why: &str| Error::usage(format!("ENDPOINT {why}")).hint(hint);
        let text = text.trim();
        let uri: Uri = text.parse().map_err(|_| refuse("is not a URL"))?;
        match uri.scheme_str() {
            Some("http" | "https") => {}
            Some(_) => return Err(refuse("has a scheme other than http and https")),
            None => return Err(refuse("has no scheme (http:// or https://)")),
        }
        let authority = uri.authority().ok_or_else(|| refuse("names no host"))?;
        if authority.as_str().contains('@') {
            return Err(refuse("holds a user's name or password"));
        }
        if authority.host().is_empty() {
            return Err(refuse("names no host"));
        }
        if text.contains('#') {
            return Err(refuse("has a fragment (#…)"));
        }
        let path = uri.path().trim_end_matches('/');
        if path.ends_with("/completions") {
            return Err(refuse("names one interface of the server, not their base"));
        }
        let scheme = uri.scheme_str().unwrap_or_default();
        Ok(Self {
            base: format!("{scheme}://{authority}{path}"),
            query: uri.query().map(str::to_owned),
        })
    }

    /// The URL of `path`, which begins with a slash, for the request itself; not to be shown.
    pub fn url(&self, path: &str) -> String {
        match &self.query {
            None => format!("{}{path}", self.base),
            Some(query) => format!("{}{path}?{query}", self.base),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.base)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Endpoint({})", self.base)
    }
}

impl Serialize for Endpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.base)
    }
}

/// `API_KEY`. Neither printed nor recorded: it cannot be shown or serialised.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Takes a key as the environment has it.
    ///
    /// # Errors
    /// Exit code 2 where it cannot stand in a header.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                Error::usage("API_KEY holds characters that no key has").hint(
                    "set it to the key alone: letters, digits and signs, on one line, no spaces",
                ),
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The value of the `Authorization` header.
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// `text` with the key taken out: servers quote it.
    pub fn hide(&self, text: &str) -> String {
        text.replace(&self.0, "[API_KEY]")
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_base_url() {
        let url = |text: &str, path: &str| Endpoint::parse(text).expect("sound").url(path);
        let plain = "http://127.0.0.1:8000/v1";
        assert_eq!(url(plain, "/models"), "http://127.0.0.1:8000/v1/models");
        assert_eq!(
            url(" https://host/v1/ ", "/models"),
            "https://host/v1/models"
        );
        assert_eq!(url("http://[::1]:80", "/models"), "http://[::1]:80/models");
        assert_eq!(
            url("https://host/openai?version=3", "/models"),
            "https://host/openai/models?version=3"
        );
    }

    #[test]
    fn what_is_no_endpoint_is_refused_without_being_shown() {
        for text in [
            "",
            "host:8000/v1",
            "/v1",
            "ftp://secret.example/",
            "http://",
            "http:///v1",
            "http://user:secret@host/v1",
            "http://secret@host",
            "http://host/v1/chat/completions?secret",
            "http://host/v1/completions",
            "http://host/#secret",
            "http://ho st/secret",
        ] {
            let error = Endpoint::parse(text).expect_err(text);
            assert_eq!(error.exit(), crate::error::Exit::Usage, "{text}");
            assert!(!error.report().contains("secret"), "{}", error.report());
            assert!(error.report().contains("hint: "), "{text}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let endpoint = Endpoint::parse("https://host/v1?key=canary").expect("sound");
        let config = RemoteConfig {
            endpoint,
            api_key: Some(ApiKey::new(" canary-key\n").expect("a key")),
            endpoint_api: EndpointApi::Chat,
            endpoint_extra: serde_json::Map::new(),
            tokenizer: None,
            patience: Patience::default(),
        };
        let json = serde_json::to_string(&config).expect("plain fields");
        let shown = format!("{config:?} {} {json}", config.endpoint);
        assert!(!shown.contains("canary"), "{shown}");
        assert!(json.contains(r#""endpoint":"https://host/v1""#), "{json}");
        let key = config.api_key.expect("just set");
        assert_eq!(key.bearer(), "Bearer canary-key");
        assert_eq!(key.hide("no canary-key here"), "no [API_KEY] here");
    }

    #[test]
    fn a_key_is_one_word() {
        for text in ["", " ", "two words", "line\nbreak", "schlüssel", "tab\tbed"] {
            let error = ApiKey::new(text).expect_err("no key").report();
            assert!(text.trim().is_empty() || !error.contains(text), "{error}");
        }
    }
}
