//! `ENDPOINT_HEADERS`: extra request headers.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use ureq::http::{HeaderName, HeaderValue};

use super::secret::Secrets;
use crate::error::{Error, Result};

/// Headers that only the program or HTTP itself may set, and why.
const RESERVED_HEADERS: [(&str, &str); 16] = [
    (
        "accept-encoding",
        "a compressed stream comes in larger pieces than tokens",
    ),
    ("connection", "the program manages its connections"),
    ("content-encoding", "bodies are sent as they are"),
    ("content-length", "it is computed from the body"),
    ("content-type", "bodies are JSON"),
    ("expect", "it changes how a request is sent"),
    ("host", "it is taken from ENDPOINT"),
    ("http2-settings", "requests are HTTP/1.1"),
    ("keep-alive", "the program manages its connections"),
    ("proxy-authenticate", "it belongs to a proxy"),
    (
        "proxy-authorization",
        "put a proxy's user and password in its URL",
    ),
    ("proxy-connection", "the program manages its connections"),
    ("te", "it changes how a response is sent"),
    ("trailer", "it changes how a request is sent"),
    ("transfer-encoding", "it changes how a request is sent"),
    ("upgrade", "requests are HTTP/1.1"),
];

const HINT: &str = "ENDPOINT_HEADERS (--endpoint-headers) is a JSON object of strings, such as \
                    {\"api-key\": \"$AZURE_KEY\"}; $NAME and ${NAME} expand to environment variables, $$ to $";

/// Extra request headers. Names are printed and recorded, values never are.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Headers {
    all: Vec<(HeaderName, HeaderValue)>,
    secrets: Secrets,
}

impl Headers {
    /// Parses the JSON object; `variable` looks up an environment variable.
    ///
    /// # Errors
    /// Exit code 2 for invalid JSON, invalid header names or values, headers that the program sets
    /// itself, and unset variables. Errors do not show values.
    pub fn parse(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let refuse = |why: String| Error::usage(format!("ENDPOINT_HEADERS {why}")).hint(HINT);
        let members: Map<String, Value> =
            serde_json::from_str(text).map_err(|_| refuse("is not a JSON object".to_owned()))?;
        let mut headers = Self::default();
        for (name, value) in &members {
            let Ok(header) = HeaderName::from_bytes(name.as_bytes()) else {
                return Err(refuse(format!("names {name:?}, which is no header's name")));
            };
            if let Some((_, why)) = RESERVED_HEADERS
                .iter()
                .find(|(ours, _)| *ours == header.as_str())
            {
                return Err(refuse(format!("names {name}, which cannot be set: {why}")));
            }
            if headers.has(&header) {
                return Err(refuse(format!("names {name} twice, in different case")));
            }
            let Value::String(template) = value else {
                return Err(refuse(format!(
                    "has something other than a text for {name}"
                )));
            };
            let (value, used) = expand(template, &variable)
                .map_err(|why| refuse(format!("has a value for {name} that {why}")))?;
            let value = value.trim();
            let Ok(mut checked) = HeaderValue::from_str(value) else {
                return Err(refuse(format!(
                    "has a value for {name} with characters that a header cannot hold"
                )));
            };
            if value.is_empty() {
                return Err(refuse(format!("has an empty value for {name}")));
            }
            checked.set_sensitive(true);
            for (variable, text) in used {
                headers.secrets.add(text.trim(), &variable);
            }
            headers.secrets.add_value(value, name);
            headers.all.push((header, checked));
        }
        Ok(headers)
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn has(&self, name: &HeaderName) -> bool {
        self.all.iter().any(|(known, _)| known == name)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.all.iter().map(|(name, value)| (name, value))
    }

    /// Strings that must not appear in any output.
    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }
}

/// Expands the variables; also returns the name and value of each one used.
fn expand(
    template: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<(String, Vec<(String, String)>), String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut text = String::new();
    let mut used = Vec::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once('$') {
        text.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            text.push('$');
            rest = after;
            continue;
        }
        let (name, after) = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}').unwrap_or(("", "")),
            None => after.split_at(after.find(|c| !is_name(c)).unwrap_or(after.len())),
        };
        let starts = name.chars().next().is_some_and(|c| !c.is_ascii_digit());
        if !starts || !name.chars().all(is_name) {
            return Err("has a $ with no variable's name behind it".to_owned());
        }
        let Some(value) = variable(name) else {
            return Err(format!("needs the variable {name}, which is not set"));
        };
        text.push_str(&value);
        used.push((name.to_owned(), value));
        rest = after;
    }
    text.push_str(rest);
    Ok((text, used))
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list()
            .entries(self.all.iter().map(|(name, _)| name))
            .finish()
    }
}

/// Serializes the names only.
impl Serialize for Headers {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_seq(self.all.iter().map(|(name, _)| name.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variable(name: &str) -> Option<String> {
        match name {
            "KEY" => Some("canary-1".to_owned()),
            "_key2" => Some("canary-2\n".to_owned()),
            "BROKEN" => Some("canary\r\nX-Other: 1".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_in_values_are_expanded() {
        let headers = Headers::parse(
            r#"{"api-key": "$KEY", "Authorization": "Bearer ${_key2}", "x-plain": "a$$b: $KEY."}"#,
            variable,
        )
        .expect("sound");
        let value = |name: &str| {
            let found = headers.iter().find(|(known, _)| known.as_str() == name);
            found.and_then(|(_, value)| value.to_str().ok())
        };
        assert_eq!(value("api-key"), Some("canary-1"));
        assert_eq!(value("authorization"), Some("Bearer canary-2"));
        assert_eq!(value("x-plain"), Some("a$b: canary-1."));
        let json = serde_json::to_string(&headers).expect("names");
        assert_eq!(json, r#"["authorization","api-key","x-plain"]"#);
        assert!(!format!("{headers:?}").contains("canary"));
        let hidden = headers.secrets().hide("canary-1 and Bearer canary-2");
        assert_eq!(hidden, "[KEY] and [Authorization]");
        assert_eq!(headers.secrets().hide("canary-2"), "[_key2]");
        assert!(Headers::parse("{}", variable).expect("none").is_empty());
    }

    #[test]
    fn invalid_headers_are_rejected_without_showing_the_value() {
        for (text, words) in [
            ("[]", "not a JSON object"),
            ("canary", "not a JSON object"),
            (r#"{"a b": "canary"}"#, "\"a b\", which is no header's name"),
            (r#"{"": "canary"}"#, "no header's name"),
            (r#"{"HOST": "canary"}"#, "names HOST, which cannot be set"),
            (r#"{"Content-Length": "1"}"#, "cannot be set"),
            (r#"{"Transfer-Encoding": "chunked"}"#, "cannot be set"),
            (r#"{"X-A": "1", "x-a": "2"}"#, "twice"),
            (r#"{"x": 1}"#, "other than a text for x"),
            (r#"{"x": ["canary"]}"#, "other than a text for x"),
            (r#"{"x": ""}"#, "empty"),
            (r#"{"x": "canary\nX-Y: 1"}"#, "cannot hold"),
            (r#"{"x": "$BROKEN"}"#, "cannot hold"),
            (
                r#"{"x": "$NOWHERE"}"#,
                "the variable NOWHERE, which is not set",
            ),
            (r#"{"x": "${NOWHERE}canary"}"#, "the variable NOWHERE"),
            (r#"{"x": "5 $"}"#, "no variable's name"),
            (r#"{"x": "${KEY"}"#, "no variable's name"),
            (r#"{"x": "${}canary"}"#, "no variable's name"),
            (r#"{"x": "$5"}"#, "no variable's name"),
        ] {
            let error = Headers::parse(text, variable).expect_err(text);
            assert_eq!(error.exit(), crate::error::Exit::Usage, "{text}");
            let report = error.report();
            assert!(report.contains(words), "{text}: {report}");
            assert!(!report.contains("canary"), "{report}");
        }
    }
}
