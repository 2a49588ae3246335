//! What `flowbench doctor` says of a server: asked once, without retries, and nothing is measured.

use std::sync::Arc;
use std::time::Duration;

use super::call::Caller;
use super::connection::named;
use super::failure::{Cause, Failure};
use super::models;
use super::network::Network;
use super::ready::{self, State};
use crate::config::RemoteConfig;
use crate::error::Result;
use crate::stopwatch::Timer;
use crate::units::Millis;

/// How long an answer is waited for, beside the connection.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was found.
#[derive(Debug, Clone)]
pub struct ServerReport {
    /// The proxy that is used, and the variable that names it.
    pub proxy: Option<String>,
    /// Where the certificates are from that are trusted, where the server is asked over TLS.
    pub roots: Option<String>,
    /// How long the listing took.
    pub time: Millis,
    /// What the server says.
    pub answer: Answer,
}

/// What a server says when it is asked for its models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Their names.
    Models(Vec<String>),
    /// It answers, but not with a list: why, and what to do about it.
    NoList(String, Option<&'static str>),
    /// It is starting, or loads a model.
    Starting(String),
    /// It cannot be used: why, and what to do about it.
    Failed(String, Option<&'static str>),
}

/// Asks the server.
///
/// # Errors
/// Exit code 3 where trusted certificates cannot be read.
pub fn probe(config: &RemoteConfig) -> Result<ServerReport> {
    let network = Arc::new(Network::new(config)?);
    let caller = Caller::new(config, Arc::clone(&network));
    let agent = network.agent_within(config.retry.connect() + PATIENCE);
    let begun = Timer::start();
    let listing = caller.get(&agent, &config.server.endpoint.url("/models"));
    let time = Millis::from(begun.elapsed());
    let listed = listing.and_then(|body| models::listed(&body));
    let failed = |failure: Failure| match models::is_no_list(&failure) {
        true => Answer::NoList(failure.message, failure.hint),
        false => Answer::Failed(failure.message, failure.hint),
    };
    let answer = match listed {
        Err(failure) if failure.status.is_none() && failure.cause != Cause::Malformed => {
            failed(failure)
        }
        listed => match (ready::state(&caller, &agent, config), listed) {
            (State::Starting(reason), _) => Answer::Starting(reason),
            (_, Ok(models)) => Answer::Models(models.into_iter().map(|model| model.id).collect()),
            (_, Err(failure)) => failed(failure),
        },
    };
    Ok(ServerReport {
        proxy: config.server.proxy.as_ref().map(named),
        roots: network.roots.clone(),
        time,
        answer,
    })
}
