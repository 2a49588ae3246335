//! `WAIT_READY`: waits for a server that is starting or loading its model, before anything is
//! measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use serde_json::Value;
use ureq::Agent;

use super::call::Caller;
use super::failure::{Cause, Failure};
use super::network::Network;
use crate::config::RemoteConfig;
use crate::error::{Error, Exit, Result};
use crate::stopwatch::Timer;

/// How often to check for an interrupt.
const TICK: Duration = Duration::from_millis(50);

/// First and longest pause between two checks; pauses grow from one to the other.
const PAUSES: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// Timeout of one check. A server that accepts connections while it loads may not answer at all.
const QUESTION: Duration = Duration::from_secs(10);

/// How often to repeat an unchanged reason to the user.
const REMINDER: Duration = Duration::from_secs(30);

#[derive(Debug, Clone, PartialEq)]
pub(super) enum State {
    Ready,
    /// It may become ready later.
    Starting(String),
    /// It will not become ready.
    Failed(Failure),
}

/// Waits for as long as `WAIT_READY` allows. Calls `tell` with the reason when it changes, and
/// repeats it from time to time.
///
/// # Errors
/// Exit code 3 with the last reason if the server is not ready by then, or never will be (its
/// certificate is not trusted); 106 if interrupted.
pub fn wait(
    config: &RemoteConfig,
    interrupted: &AtomicBool,
    tell: &mut dyn FnMut(&str),
) -> Result<()> {
    let limit = config.server.wait_ready();
    if limit.is_zero() {
        return Ok(());
    }
    let network = Arc::new(Network::new(config)?);
    let caller = Arc::new(Caller::new(config, Arc::clone(&network)));
    let begun = Timer::start();
    let mut pause = PAUSES.0;
    let mut told: Option<(String, Timer)> = None;
    loop {
        let time = limit.saturating_sub(begun.elapsed()).clamp(TICK, QUESTION);
        let reason = match question(&caller, &network, config, time, interrupted)? {
            State::Ready => {
                if told.is_some() {
                    tell(&format!(
                        "Ready after {:.1} s",
                        begun.elapsed().as_secs_f64()
                    ));
                }
                return Ok(());
            }
            State::Failed(failure) => {
                let error = Error::preflight(format!(
                    "the endpoint {} cannot be used: {}",
                    config.server.endpoint, failure.message
                ));
                return Err(match failure.hint {
                    Some(hint) => error.hint(hint),
                    None => error,
                });
            }
            State::Starting(reason) => reason,
        };
        let spent = begun.elapsed();
        if spent >= limit {
            return Err(Error::preflight(format!(
                "the endpoint {} was not ready within {} s (WAIT_READY): {reason}",
                config.server.endpoint, config.server.wait_ready_s
            ))
            .hint("is the server running at ENDPOINT? a large model may take longer to load: raise WAIT_READY"));
        }
        let is_news =
            |(known, since): &(String, Timer)| *known != reason || since.elapsed() >= REMINDER;
        if told.as_ref().is_none_or(is_news) {
            tell(&format!(
                "Waiting for the server ({:.0} of {} s): {reason}",
                spent.as_secs_f64(),
                config.server.wait_ready_s
            ));
            told = Some((reason, Timer::start()));
        }
        rest(pause.min(limit.saturating_sub(spent)), interrupted)?;
        pause = (pause * 3 / 2).min(PAUSES.1);
    }
}

/// Checks once, on a separate thread so that an interrupt does not have to wait for the answer.
fn question(
    caller: &Arc<Caller>,
    network: &Network,
    config: &RemoteConfig,
    time: Duration,
    interrupted: &AtomicBool,
) -> Result<State> {
    let agent = network.agent_within(time);
    let (sender, answer) = channel();
    let (caller, asking, asked) = (Arc::clone(caller), agent.clone(), config.clone());
    thread::Builder::new()
        .name("wait-ready".to_owned())
        .spawn(move || {
            // Nobody listens after an interrupt.
            let _ = sender.send(state(&caller, &asking, &asked));
        })
        .map_err(|error| Error::preflight("failed to start a thread").caused_by(error))?;
    loop {
        match answer.recv_timeout(TICK) {
            Ok(state) => return Ok(state),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Ok(State::Starting("the check gave no answer".to_owned()));
            }
        }
        if let Err(error) = check(interrupted) {
            agent.shutdown();
            return Err(error);
        }
    }
}

/// Queries `/models`, which some servers answer while they load a model, and `/health`, which not
/// all servers have.
pub(super) fn state(caller: &Caller, agent: &Agent, config: &RemoteConfig) -> State {
    match caller.get(agent, &config.server.endpoint.url("/models")) {
        Ok(body) => {
            if let Some(status) = loading(&body) {
                return State::Starting(format!("GET /models: {status}"));
            }
        }
        Err(failure) if is_starting(&failure) => return State::Starting(failure.message),
        Err(failure) => match failure.status {
            // Other requests may still work.
            Some(_) => {}
            None => return State::Failed(failure),
        },
    }
    match caller.get(agent, &config.server.endpoint.beside("/health")) {
        Ok(body) => match loading(&body) {
            Some(status) => State::Starting(format!("GET /health: {status}")),
            None => State::Ready,
        },
        Err(failure) if failure.status.is_some() && is_starting(&failure) => {
            State::Starting(format!("GET /health: {}", failure.message))
        }
        Err(_) => State::Ready,
    }
}

/// Whether a starting server may fail like this.
fn is_starting(failure: &Failure) -> bool {
    let is_loading = || failure.message.to_ascii_lowercase().contains("loading");
    match failure.status {
        Some(502..=504) => true,
        Some(_) => is_loading(),
        None => matches!(
            failure.cause,
            Cause::Connect | Cause::Timeout | Cause::CutOff | Cause::Server
        ),
    }
}

/// The status in a body, if it says that a model is loading (llama.cpp's `{"status": "loading
/// model"}`).
fn loading(body: &[u8]) -> Option<String> {
    let value: Value = serde_json::from_slice(body).ok()?;
    let status = value.get("status")?.as_str()?;
    let lower = status.to_ascii_lowercase();
    let words = ["loading", "starting", "initializing", "not ready"];
    let is_loading = words.iter().any(|word| lower.contains(word));
    is_loading.then(|| super::failure::shorten(status))
}

fn rest(time: Duration, interrupted: &AtomicBool) -> Result<()> {
    let begun = Timer::start();
    loop {
        check(interrupted)?;
        let left = time.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Ok(());
        }
        thread::sleep(left.min(TICK));
    }
}

fn check(interrupted: &AtomicBool) -> Result<()> {
    if interrupted.load(Ordering::Relaxed) {
        return Err(Error::new(
            Exit::Incomplete,
            "interrupted while waiting for the server (WAIT_READY)",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::remote::reason;
    use ureq::http::HeaderMap;

    #[test]
    fn starting_servers_are_recognized() {
        for (body, is_loading) in [
            (r#"{"status": "loading model"}"#, true),
            (r#"{"status": "Starting"}"#, true),
            (r#"{"status": "ok"}"#, false),
            (r#"{"status": 503}"#, false),
            (r#"{"data": [{"id": "loading"}]}"#, false),
            ("", false),
            ("loading", false),
        ] {
            assert_eq!(loading(body.as_bytes()).is_some(), is_loading, "{body}");
        }
        let status = |status: u16, body: &str| {
            is_starting(&Failure::status(
                status,
                &HeaderMap::new(),
                &reason::said(body.as_bytes()),
            ))
        };
        assert!(status(503, "") && status(502, "") && status(504, ""));
        assert!(status(500, r#"{"error": {"message": "Loading model"}}"#));
        assert!(!status(500, "") && !status(401, "") && !status(404, "") && !status(429, ""));
        for (cause, starting) in [
            (Cause::Connect, true),
            (Cause::CutOff, true),
            (Cause::Timeout, true),
            (Cause::Certificate, false),
            (Cause::Malformed, false),
            (Cause::Refused, false),
        ] {
            assert_eq!(is_starting(&Failure::new(cause, "")), starting, "{cause:?}");
        }
    }
}
