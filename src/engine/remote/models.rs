//! Finds the server's model when the engine starts. A server that cannot be reached is detected
//! before anything is measured, and so is a wrong key if the listing requires one.

use std::thread;

use serde_json::Value;
use ureq::Agent;

use super::call::Caller;
use super::failure::{Cause, Failure, excerpt};
use super::retry::{self, RetryDecision};
use crate::config::{Change, RemoteConfig};
use crate::error::{Error, Result};
use crate::stopwatch::Timer;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServedModel {
    /// The name to send in requests.
    pub(super) id: String,
    /// Maximum length of a sequence in tokens, if the server reports it (vLLM does).
    pub(super) max_model_len: Option<usize>,
}

const NAME_IT: &str = "set MODEL (--model) to its name, because the server does not list it";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) model: ServedModel,
    /// Number of calls made to find it.
    pub(super) attempts: usize,
    /// Why the server lists no models, if the named one is used without a listing.
    pub(super) note: Option<String>,
}

/// Parses the body of `GET /models`: OpenAI's `data`, a bare list (Together), or `models` with
/// names (Ollama).
///
/// # Errors
/// The body is not such a list.
pub(super) fn listed(body: &[u8]) -> Result<Vec<ServedModel>, Failure> {
    let refuse = |why: String| {
        let message = format!("GET /models: not a list of models: {why}");
        Failure::new(Cause::Malformed, message)
    };
    let listing: Value = serde_json::from_slice(body).map_err(|error| refuse(error.to_string()))?;
    let lists = [Some(&listing), listing.get("data"), listing.get("models")];
    let list = lists.into_iter().flatten().find_map(Value::as_array);
    let list = list.ok_or_else(|| refuse(excerpt(body)))?;
    let model = |model: &Value| {
        let names = ["id", "name", "model"];
        Some(ServedModel {
            id: (names.iter().find_map(|name| model.get(*name)?.as_str()))?.to_owned(),
            max_model_len: (model.get("max_model_len").and_then(Value::as_u64))
                .and_then(|length| usize::try_from(length).ok()),
        })
    };
    Ok(list.iter().filter_map(model).collect())
}

/// Finds the model.
///
/// # Errors
/// Exit code 3 if the server cannot be reached, or lists no models and none is named. Exit code 2
/// if it serves several models and none is named.
pub(super) fn find(
    caller: &Caller,
    agent: &Agent,
    config: &RemoteConfig,
    model: Option<&str>,
) -> Result<Found> {
    let wanted = match (config.model(model), config.endpoint_extra.change("model")) {
        (Some(wanted), _) => Some(wanted),
        // Requests carry no model name: the server picks its model.
        (None, Change::Drop) => Some("unnamed"),
        (None, _) => None,
    };
    let (answer, attempts) = ask(caller, agent, config);
    let mut note = None;
    let model = match (answer.and_then(|body| listed(&body)), wanted) {
        (Ok(models), Some(wanted)) => {
            // A model that is not listed may still be served under another name.
            let known = models.into_iter().find(|model| model.id == wanted);
            known.unwrap_or_else(|| unlisted(wanted))
        }
        (Ok(models), None) => only(models, config)?,
        // Not every server has a listing, and not every key may read it. The first request shows
        // whether the server has the model.
        (Err(failure), Some(wanted)) if is_no_list(&failure) => {
            note = Some(format!(
                "the server lists no models ({}); using {wanted}",
                failure.message
            ));
            unlisted(wanted)
        }
        (Err(failure), _) => {
            let error = Error::preflight(format!(
                "the endpoint {} cannot be used: {}",
                config.server.endpoint, failure.message
            ));
            let hint = match (failure.status, failure.hint) {
                (Some(401 | 403), Some(hint)) => &format!("{hint}; or {NAME_IT}"),
                (Some(404), _) => {
                    &format!("is ENDPOINT the base URL (it often ends in /v1)? if so, {NAME_IT}")
                }
                (Some(502..=504), None) => {
                    "to wait for a server that is starting or loading its model, set \
                     WAIT_READY=SECONDS"
                }
                (_, Some(hint)) => hint,
                _ if is_no_list(&failure) => NAME_IT,
                _ => "is the server running, and is ENDPOINT its base URL?",
            };
            return Err(error.hint(hint));
        }
    };
    Ok(Found {
        model,
        attempts,
        note,
    })
}

fn unlisted(name: &str) -> ServedModel {
    ServedModel {
        id: name.to_owned(),
        max_model_len: None,
    }
}

/// Whether the server answers, but not with a listing. Redirects, a proxy's refusal and a gateway
/// without a server behind it (502, 503, 504) do not count: they would affect requests, too.
pub(super) fn is_no_list(failure: &Failure) -> bool {
    match failure.status {
        Some(407) => false,
        Some(status) => matches!(status, 400..=499 | 500 | 501 | 505..),
        None => failure.cause == Cause::Malformed && failure.hint.is_none(),
    }
}

fn only(models: Vec<ServedModel>, config: &RemoteConfig) -> Result<ServedModel> {
    let names: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    let names = names.join(", ");
    match <[ServedModel; 1]>::try_from(models) {
        Ok([model]) => Ok(model),
        Err(none) if none.is_empty() => Err(Error::preflight(format!(
            "the endpoint {} serves no model",
            config.server.endpoint
        ))
        .hint("load a model there, or set MODEL (--model)")),
        Err(several) => Err(Error::usage(format!(
            "the endpoint {} serves {} models: {names}",
            config.server.endpoint,
            several.len()
        ))
        .hint("set MODEL (--model) to one of them")),
    }
}

/// Gets the listing, with the same retries as requests.
fn ask(caller: &Caller, agent: &Agent, config: &RemoteConfig) -> (Result<Vec<u8>, Failure>, usize) {
    let begun = Timer::start();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let failure = match caller.get(agent, &config.server.endpoint.url("/models")) {
            Ok(body) => return (Ok(body), attempts),
            Err(failure) => failure,
        };
        // An unreachable proxy is more often a wrong setting than a proxy that restarts.
        if failure.cause == Cause::Connect && config.server.proxy.is_some() {
            return (Err(failure), attempts);
        }
        let spent = begun.elapsed();
        match retry::decide(&config.retry, &failure, attempts, spent, 0) {
            RetryDecision::Again(wait) => thread::sleep(wait),
            RetryDecision::GiveUp(_) => return (Err(failure), attempts),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ureq::http::HeaderMap;

    #[test]
    fn listings_of_several_servers_are_parsed() {
        let ids = |body: &str| -> Option<Vec<String>> {
            let models = listed(body.as_bytes()).ok()?;
            Some(models.into_iter().map(|model| model.id).collect())
        };
        for (body, expected) in [
            (
                r#"{"data": [{"id": "a"}, {"id": "b", "max_model_len": null}]}"#,
                Some(2),
            ),
            (
                r#"{"data": [{"id": "a", "max_model_len": 2048.5}]}"#,
                Some(1),
            ),
            (r#"[{"id": "a"}]"#, Some(1)),
            (r#"{"models": [{"name": "a"}], "data": null}"#, Some(1)),
            (r#"{"data": [{"id": 3}, null]}"#, Some(0)),
            (r#"{"data": null}"#, None),
            (r#"{"detail": "no"}"#, None),
            ("<html>", None),
        ] {
            assert_eq!(ids(body).map(|ids| ids.len()), expected, "{body}");
        }
        let vllm = listed(br#"{"data": [{"id": "a", "max_model_len": 2048}]}"#).expect("a list");
        assert_eq!(vllm[0].max_model_len, Some(2048));
    }

    #[test]
    fn a_server_that_answers_may_have_no_list() {
        for (status, no_list) in [
            (400, true),
            (401, true),
            (403, true),
            (404, true),
            (405, true),
            (429, true),
            (500, true),
            (501, true),
            (302, false),
            (407, false),
            (502, false),
            (503, false),
            (504, false),
        ] {
            let failure = Failure::status(status, &HeaderMap::new(), "");
            assert_eq!(is_no_list(&failure), no_list, "{status}");
        }
        assert!(is_no_list(&listed(b"<html>").expect_err("no JSON")));
        assert!(!is_no_list(&Failure::new(Cause::Connect, "refused")));
        assert!(!is_no_list(&Failure::new(Cause::Certificate, "expired")));
    }
}
