//! `flowbench doctor`'s check of a server. There are no retries, and nothing is measured.

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

/// How long to wait for the answer, in addition to the connection.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone)]
pub struct ServerReport {
    /// The proxy in use, and the variable that sets it.
    pub proxy: Option<String>,
    /// Where the trusted certificates come from, if TLS is used.
    pub roots: Option<String>,
    /// How long the listing took.
    pub time: Millis,
    pub answer: Answer,
}

/// The answer to the query for the server's models.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Models(Vec<String>),
    /// The server answers, but not with a listing: why, and a hint.
    NoList(String, Option<&'static str>),
    /// The server is starting or loading a model.
    Starting(String),
    /// The server cannot be used: why, and a hint.
    Failed(String, Option<&'static str>),
}

/// Queries the server.
///
/// # Errors
/// Exit code 3 if trusted certificates cannot be read.
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
