//! Which model the server serves, asked when the engine starts: a server that is not there, or does
//! not know the key, is found out before anything is measured.

use std::thread;

use serde::Deserialize;
use ureq::Agent;

use super::call::Caller;
use super::failure::{Cause, Failure};
use super::retry::{self, Verdict};
use crate::config::RemoteConfig;
use crate::error::{Error, Result};
use crate::stopwatch::Pace;

/// A model that the server names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(super) struct ServedModel {
    /// The name to ask for.
    pub(super) id: String,
    /// Most tokens of a sequence, where the server says (vLLM does).
    pub(super) max_model_len: Option<usize>,
}

#[derive(Deserialize)]
struct Listing {
    data: Vec<ServedModel>,
}

/// Finds the model, and how many calls that took.
///
/// # Errors
/// Exit code 3 where the server cannot be reached or refuses the key, 2 where `wanted` is `None` and
/// the server serves several models.
pub(super) fn find(
    caller: &Caller,
    agent: &Agent,
    config: &RemoteConfig,
    wanted: Option<&str>,
) -> Result<(ServedModel, usize)> {
    let (answer, attempts) = ask(caller, agent, config);
    let listed = answer.and_then(|body| {
        let listing = serde_json::from_slice::<Listing>(&body);
        listing.map(|listing| listing.data).map_err(|error| {
            Failure::new(
                Cause::Malformed,
                format!("GET /models: not a list of models: {error}"),
            )
        })
    });
    let model = match (listed, wanted) {
        (Ok(models), Some(wanted)) => {
            // One that is not listed may be served all the same, under another name.
            let known = models.into_iter().find(|model| model.id == wanted);
            known.unwrap_or_else(|| unlisted(wanted))
        }
        (Ok(models), None) => only(models, config)?,
        // Not every server has a list; whether it serves the model, the first request says.
        (Err(failure), Some(wanted)) if is_no_list(&failure) => unlisted(wanted),
        (Err(failure), _) => {
            let error = Error::preflight(format!(
                "the endpoint {} cannot be used: {}",
                config.endpoint, failure.message
            ));
            let hint = match failure.hint {
                Some(hint) => hint,
                None if is_no_list(&failure) => "let MODEL (--model) name the model to ask for",
                None => "is the server running, and is ENDPOINT its base URL?",
            };
            return Err(error.hint(hint));
        }
    };
    Ok((model, attempts))
}

fn unlisted(name: &str) -> ServedModel {
    ServedModel {
        id: name.to_owned(),
        max_model_len: None,
    }
}

/// Whether the server answers, but not with a list.
fn is_no_list(failure: &Failure) -> bool {
    match failure.status {
        Some(status) => matches!(status, 404 | 405 | 501),
        None => failure.cause == Cause::Malformed,
    }
}

fn only(models: Vec<ServedModel>, config: &RemoteConfig) -> Result<ServedModel> {
    let names: Vec<&str> = models.iter().map(|model| model.id.as_str()).collect();
    let names = names.join(", ");
    match <[ServedModel; 1]>::try_from(models) {
        Ok([model]) => Ok(model),
        Err(none) if none.is_empty() => Err(Error::preflight(format!(
            "the endpoint {} serves no model",
            config.endpoint
        ))
        .hint("load a model there, or let MODEL (--model) name one")),
        Err(several) => Err(Error::usage(format!(
            "the endpoint {} serves {} models: {names}",
            config.endpoint,
            several.len()
        ))
        .hint("let MODEL (--model) name one of them")),
    }
}

/// Asks, again and again as requests are.
fn ask(caller: &Caller, agent: &Agent, config: &RemoteConfig) -> (Result<Vec<u8>, Failure>, usize) {
    let begun = Pace::start();
    let mut attempts = 0;
    loop {
        attempts += 1;
        let failure = match caller.get(agent, "/models") {
            Ok(body) => return (Ok(body), attempts),
            Err(failure) => failure,
        };
        let spent = begun.elapsed();
        match retry::decide(&config.patience, &failure, attempts, spent, 0) {
            Verdict::Again(wait) => thread::sleep(wait),
            Verdict::GiveUp(_) => return (Err(failure), attempts),
        }
    }
}
