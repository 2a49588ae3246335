//! Settings of `MODE=remote`: the server, the requests to it, time-outs and retries.

mod authority;
mod extra;
mod headers;
mod proxy;
mod secret;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Serialize, Serializer};
use ureq::http::Uri;

use super::names::settings;
use crate::error::{Error, Result};

pub use extra::{Change, EndpointExtra};
pub use headers::Headers;
pub use proxy::{Proxy, ProxyKind};
pub use secret::Secrets;

/// API of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum EndpointApi {
    /// `/chat/completions`: the server renders the conversation.
    Chat,
    /// `/completions`: flowbench renders the conversation, with the tokenizer's chat template or as
    /// plain text.
    Completions,
}

/// Cap on the flows in flight if `CONCURRENCY` is not set.
pub(super) const MAX_DEFAULT_CONCURRENCY: usize = 256;

settings! {
    /// The server and the way to it.
    #[derive(Debug, Clone, PartialEq, Serialize)]
    pub struct Server {
        pub endpoint: Endpoint,
        /// Never recorded.
        #[serde(skip)]
        pub api_key: Option<ApiKey>,
        #[serde(skip_serializing_if = "Option::is_none")]
        pub proxy: Option<Proxy>,
        /// Certificates to trust in place of the system's.
        #[serde(skip)]
        pub trust: Trust,
        /// The model's tokenizer on this machine: a `.gguf` file, a folder, or its `tokenizer.json`.
        pub tokenizer: Option<PathBuf>,
        /// How long to wait, before the run, for a server that is still starting; 0: not at all.
        pub wait_ready_s: f64,
    }
}

/// Settings of the remote engine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RemoteConfig {
    #[serde(flatten)]
    pub server: Server,
    pub endpoint_api: EndpointApi,
    /// Members of request bodies that are added, changed or left out.
    #[serde(skip_serializing_if = "EndpointExtra::is_empty")]
    pub endpoint_extra: EndpointExtra,
    /// Additional headers. Their names are recorded, their values are not.
    #[serde(skip_serializing_if = "Headers::is_empty")]
    pub endpoint_headers: Headers,
    #[serde(flatten)]
    pub retry: RetryPolicy,
}

impl Server {
    /// [`Self::wait_ready_s`].
    pub fn wait_ready(&self) -> Duration {
        Duration::from_secs_f64(self.wait_ready_s)
    }
}

impl RemoteConfig {
    /// Strings that must not appear in any output.
    pub fn secrets(&self) -> Secrets {
        let mut secrets = self.endpoint_headers.secrets().clone();
        if let Some(key) = &self.server.api_key {
            secrets.add(&key.0, "API_KEY");
        }
        if let Some(proxy) = &self.server.proxy {
            proxy.add_secrets(&mut secrets);
        }
        for parameter in self
            .server
            .endpoint
            .query
            .iter()
            .flat_map(|query| query.split('&'))
        {
            if let Some((_, value)) = parameter.split_once('=')
                && value.len() >= 8
            {
                secrets.add(value, "ENDPOINT");
            }
        }
        secrets
    }

    /// Model name to request: `ENDPOINT_EXTRA` overrides `MODEL`.
    pub fn model<'a>(&'a self, model: Option<&'a str>) -> Option<&'a str> {
        match self.endpoint_extra.change("model") {
            Change::Set(value) => value.as_str().or(model),
            _ => model,
        }
    }
}

/// Trusted certificates (`SSL_CERT_FILE`, `SSL_CERT_DIR`). As in OpenSSL and curl, setting either
/// one replaces the system store.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trust {
    /// A PEM file.
    pub file: Option<PathBuf>,
    /// Folders of PEM files.
    pub folders: Vec<PathBuf>,
}

/// Timeouts and retries. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RetryPolicy {
    /// For establishing a connection, name resolution included.
    pub connect_timeout_s: f64,
    /// From the start of the attempt.
    pub first_token_timeout_s: f64,
    /// Between two tokens.
    pub token_timeout_s: f64,
    /// From the start of the first attempt, all attempts included.
    pub request_timeout_s: f64,
    /// At least 1.
    pub max_attempts: usize,
    /// Delay before the first retry; it doubles with each further retry.
    pub retry_delay_s: f64,
}

impl Default for RetryPolicy {
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

impl RetryPolicy {
    /// [`Self::connect_timeout_s`].
    pub fn connect(&self) -> Duration {
        Duration::from_secs_f64(self.connect_timeout_s)
    }

    pub fn first_token(&self) -> Duration {
        Duration::from_secs_f64(self.first_token_timeout_s)
    }

    pub fn token(&self) -> Duration {
        Duration::from_secs_f64(self.token_timeout_s)
    }

    pub fn request(&self) -> Duration {
        Duration::from_secs_f64(self.request_timeout_s)
    }

    pub fn retry_delay(&self) -> Duration {
        Duration::from_secs_f64(self.retry_delay_s)
    }
}

/// Base URL of the server. Output, records and error messages omit its query, which may contain a
/// secret. A URL with a user name or password is rejected.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Scheme, host, port and path, without a trailing slash.
    base: String,
    /// `http` or `https`.
    scheme: &'static str,
    /// An IPv6 address is in brackets.
    host: String,
    /// Only if the URL gives one.
    port: Option<u16>,
    /// Sent with every request.
    query: Option<String>,
}

impl Endpoint {
    /// Parses a base URL such as `http://127.0.0.1:8000/v1`.
    ///
    /// # Errors
    /// Exit code 2 for an invalid URL. The error does not show it: it may contain a password.
    pub fn parse(text: &str) -> Result<Self> {
        let hint = "ENDPOINT (--endpoint) is a base URL, such as http://127.0.0.1:8000/v1; the key \
                    goes in API_KEY";
        let refuse = |why: &str| Error::usage(format!("ENDPOINT {why}")).hint(hint);
        let text = text.trim();
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(refuse(match text {
                "" => "is not a URL: it is empty",
                _ => "is not a URL: it has no scheme (http:// or https://)",
            }));
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "http" => "http",
            "https" => "https",
            _ => return Err(refuse("has a scheme other than http and https")),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if authority.contains('@') {
            return Err(refuse("contains a user name or password"));
        }
        let authority =
            authority::parse(authority).map_err(|why| refuse(&format!("is not a URL: {why}")))?;
        if text.contains('#') {
            return Err(refuse("has a fragment (#…)"));
        }
        let uri: Uri = text.parse().map_err(|_| refuse("is not a URL"))?;
        let path = uri.path().trim_end_matches('/');
        if path.ends_with("/completions") {
            return Err(refuse("is the URL of one API route, not the base URL"));
        }
        let (host, port) = (authority.host.to_ascii_lowercase(), authority.port);
        let shown_port = port.map_or(String::new(), |port| format!(":{port}"));
        Ok(Self {
            base: format!("{scheme}://{host}{shown_port}{path}"),
            scheme,
            host,
            port,
            query: uri.query().map(str::to_owned),
        })
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        self.scheme
    }

    /// The host; an IPv6 address is in brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port; the scheme's default if the URL gives none.
    pub fn port(&self) -> u16 {
        self.port.unwrap_or(match self.scheme {
            "https" => 443,
            _ => 80,
        })
    }

    /// Scheme, host and port: the part before the path in a request to a proxy.
    pub fn origin(&self) -> String {
        let port = self.port.map_or(String::new(), |port| format!(":{port}"));
        format!("{}://{}{port}", self.scheme, self.host)
    }

    /// URL of `path` next to the `/v1` prefix: `/health` becomes `http://host/health` for
    /// `http://host/v1`.
    pub fn beside(&self, path: &str) -> String {
        let base = self.base.strip_suffix("/v1").unwrap_or(&self.base);
        self.with_query(format!("{base}{path}"))
    }

    /// URL of `path`, which starts with a slash, for sending a request. Includes the query: do not
    /// print it.
    pub fn url(&self, path: &str) -> String {
        self.with_query(format!("{}{path}", self.base))
    }

    fn with_query(&self, url: String) -> String {
        match &self.query {
            None => url,
            Some(query) => format!("{url}?{query}"),
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

/// `API_KEY`. Never printed or recorded: it has no `Display` and no `Serialize`.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(String);

impl ApiKey {
    /// Validates a key from the environment.
    ///
    /// # Errors
    /// Exit code 2 for a key that is not valid in a header.
    pub fn new(text: &str) -> Result<Self> {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(
                Error::usage("API_KEY contains characters that are not valid in a key").hint(
                    "set it to the key alone: visible ASCII characters, without spaces or line breaks",
                ),
            );
        }
        Ok(Self(text.to_owned()))
    }

    /// The value of the `Authorization` header.
    pub fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

#[cfg(test)]
impl RemoteConfig {
    /// An endpoint with default settings.
    pub(crate) fn plain(endpoint: &str) -> Self {
        Self {
            server: Server {
                endpoint: Endpoint::parse(endpoint).expect("a URL"),
                api_key: None,
                proxy: None,
                trust: Trust::default(),
                tokenizer: None,
                wait_ready_s: 0.0,
            },
            endpoint_api: EndpointApi::Chat,
            endpoint_extra: EndpointExtra::default(),
            endpoint_headers: Headers::default(),
            retry: RetryPolicy::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_appended_to_the_base_url() {
        let url = |text: &str, path: &str| Endpoint::parse(text).expect("sound").url(path);
        let plain = "http://127.0.0.1:8000/v1";
        assert_eq!(url(plain, "/models"), "http://127.0.0.1:8000/v1/models");
        assert_eq!(
            url(" https://host/v1/ ", "/models"),
            "https://host/v1/models"
        );
        assert_eq!(url("http://[::1]:80", "/models"), "http://[::1]:80/models");
        assert_eq!(url("HTTP://HOST", "/models"), "http://host/models");
        assert_eq!(
            url("https://host/openai?version=3", "/models"),
            "https://host/openai/models?version=3"
        );
    }

    #[test]
    fn invalid_endpoints_are_rejected_without_being_shown() {
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
            "http://host:80000/v1",
            "http://host:0",
            "https://host:/secret",
            "http://host:secret",
            "http://:8000/v1",
            "http://::1:8000/v1",
            "http://[::1/v1",
            "http://http://secret/v1",
            "localhost:8000/v1",
            "http:localhost:8000",
            "http:/localhost:8000",
            "http://host/se cret",
        ] {
            let error = Endpoint::parse(text).expect_err(text);
            assert_eq!(error.exit(), crate::error::Exit::Usage, "{text}");
            assert!(!error.report().contains("secret"), "{}", error.report());
            assert!(error.report().contains("hint: "), "{text}");
        }
    }

    #[test]
    fn invalid_ports_are_named_in_the_error() {
        for (text, words) in [
            (
                "http://127.0.0.1:80000/v1",
                "is not a URL: there is no port 80000",
            ),
            (
                "https://[::1]:99999",
                "is not a URL: there is no port 99999",
            ),
            ("http://host:0/v1", "is not a URL: there is no port 0"),
            (
                "localhost:8000/v1",
                "is not a URL: it has no scheme (http:// or https://)",
            ),
        ] {
            let report = Endpoint::parse(text).expect_err(text).report();
            assert!(report.contains(words), "{text}: {report}");
        }
    }

    #[test]
    fn hosts_ports_and_urls_next_to_the_version_prefix() {
        let endpoint = |text: &str| Endpoint::parse(text).expect(text);
        let plain = endpoint("http://Host:8000/a/v1?k=1");
        assert_eq!(
            (plain.scheme(), plain.host(), plain.port()),
            ("http", "host", 8000)
        );
        assert_eq!(plain.origin(), "http://host:8000");
        assert_eq!(plain.beside("/health"), "http://host:8000/a/health?k=1");
        let secure = endpoint("https://[::1]/openai");
        assert_eq!((secure.host(), secure.port()), ("[::1]", 443));
        assert_eq!(secure.origin(), "https://[::1]");
        assert_eq!(secure.beside("/health"), "https://[::1]/openai/health");
    }

    #[test]
    fn secrets_are_not_shown() {
        let none = |_: &str| None;
        let proxy = |name: &str| (name == "https_proxy").then(|| "u:canary-p@proxy:1".to_owned());
        let config = RemoteConfig {
            server: Server {
                api_key: Some(ApiKey::new(" canary-key\n").expect("a key")),
                proxy: Proxy::find("https", "host", 443, proxy).expect("sound"),
                ..RemoteConfig::plain("https://host/v1?key=canary-query").server
            },
            endpoint_headers: Headers::parse(r#"{"x": "canary-header"}"#, none).expect("sound"),
            ..RemoteConfig::plain("http://host")
        };
        let json = serde_json::to_string(&config).expect("plain fields");
        let secrets = config.secrets();
        let shown = format!("{config:?} {} {json} {secrets:?}", config.server.endpoint);
        assert!(!shown.contains("canary"), "{shown}");
        assert!(json.contains(r#""endpoint":"https://host/v1""#), "{json}");
        assert!(json.contains(r#""endpoint_headers":["x"]"#), "{json}");
        assert!(json.contains(r#""proxy":"http://proxy:1""#), "{json}");
        let key = config.server.api_key.as_ref().expect("just set");
        assert_eq!(key.bearer(), "Bearer canary-key");
        assert_eq!(
            secrets.hide("canary-key canary-header canary-query canary-p"),
            "[API_KEY] [x] [ENDPOINT] [https_proxy]"
        );
    }

    #[test]
    fn keys_with_spaces_or_non_ascii_are_rejected() {
        for text in ["", " ", "two words", "line\nbreak", "schlüssel", "tab\tbed"] {
            let error = ApiKey::new(text).expect_err("no key").report();
            assert!(text.trim().is_empty() || !error.contains(text), "{error}");
        }
    }
}
