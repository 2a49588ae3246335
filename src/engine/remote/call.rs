//! One attempt: a request over HTTP on a thread of its own, and its answer piece by piece. The thread
//! knows no policy: what is tried again, and when one has waited long enough, is decided elsewhere.

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;

use ureq::http::header;
use ureq::{Agent, Body};

use super::failure::{Cause, Failure, excerpt};
use super::sse::EventParser;
use super::wire::{self, Usage};
use crate::config::{EndpointApi, RemoteConfig};
use crate::engine::{Finish, RequestId};

/// How long a connection is kept for the next request: less than uvicorn's five seconds, after which
/// the server may close it while a request is under way.
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// Most bytes of an error's body that are read.
const ERROR_BODY: u64 = 64 << 10;

/// What a thread tells the engine of its attempt.
#[derive(Debug)]
pub(super) struct News {
    /// The request.
    pub(super) id: RequestId,
    /// Which of all attempts.
    pub(super) attempt: u64,
    /// What happened.
    pub(super) what: What,
}

/// What happened in an attempt.
#[derive(Debug)]
pub(super) enum What {
    /// A piece of the answer.
    Chunk {
        /// Of the answer.
        text: String,
        /// Of what does not count to it.
        thought: String,
    },
    /// The answer is whole.
    Done {
        /// Why it ended.
        finish: Finish,
        /// What the server counted, if it says.
        usage: Option<Usage>,
    },
    /// There will be no answer.
    Failed(Failure),
    /// After [`What::Done`]: the stream is at its end, and its connection free.
    Drained,
}

/// A connection to the server. One agent serves one request at a time, so that it can be shut down by
/// itself.
pub(super) fn agent(config: &RemoteConfig) -> Agent {
    let patience = &config.patience;
    Agent::config_builder()
        .http_status_as_error(false)
        // The key must not go along.
        .max_redirects(0)
        // A compressed stream comes in larger pieces than tokens.
        .accept_encoding("identity")
        .user_agent(concat!("flowbench/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(patience.connect()))
        .timeout_connect(Some(patience.connect()))
        // The engine ends it before; this is for a thread that nobody looks after any more.
        .timeout_global(Some(patience.request() + Duration::from_secs(5)))
        .max_idle_age(KEEP_ALIVE)
        .build()
        .into()
}

/// What all attempts have in common.
#[derive(Debug)]
pub(super) struct Caller {
    config: RemoteConfig,
    url: String,
}

impl Caller {
    pub(super) fn new(config: &RemoteConfig) -> Self {
        let path = match config.endpoint_api {
            EndpointApi::Chat => "/chat/completions",
            EndpointApi::Completions => "/completions",
        };
        Self {
            config: config.clone(),
            url: config.endpoint.url(path),
        }
    }

    /// `GET` of another path: its body, of a few MiB at most.
    ///
    /// # Errors
    /// Any failure; a status other than 200.
    pub(super) fn get(&self, agent: &Agent, path: &str) -> Result<Vec<u8>, Failure> {
        self.hidden(|| {
            let mut request = agent.get(self.config.endpoint.url(path));
            if let Some(key) = &self.config.api_key {
                request = request.header(header::AUTHORIZATION, key.bearer());
            }
            let sent = request.call();
            let response = sent.map_err(|error| Failure::transport(&error, &self.config))?;
            let response = ok(response)?;
            let mut body = Vec::new();
            (response
                .into_body()
                .into_reader()
                .take(4 << 20)
                .read_to_end(&mut body))
            .map_err(|error| Failure::reading(&error))?;
            Ok(body)
        })
    }

    /// Makes the attempt and tells of it until it has ended.
    pub(super) fn run(
        &self,
        agent: &Agent,
        body: &Arc<Vec<u8>>,
        id: RequestId,
        attempt: u64,
        news: &Sender<News>,
    ) {
        // An engine that is gone wants to hear nothing.
        let tell = |what| {
            let _ = news.send(News { id, attempt, what });
        };
        let answered = self.hidden(|| {
            let mut stream = self.open(agent, body)?;
            let (finish, usage) = stream.follow(|text, thought| {
                tell(What::Chunk { text, thought });
            })?;
            Ok((stream, finish, usage))
        });
        match answered {
            Err(failure) => tell(What::Failed(failure)),
            Ok((stream, finish, usage)) => {
                tell(What::Done { finish, usage });
                // Read to its end, a connection serves again.
                stream.drain();
                tell(What::Drained);
            }
        }
    }

    /// What `call` does, with the key taken out of what went wrong.
    fn hidden<T>(&self, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        call().map_err(|mut failure| {
            if let Some(key) = &self.config.api_key {
                failure.message = key.hide(&failure.message);
            }
            failure
        })
    }

    /// Sends the request; the stream of its answer.
    fn open(&self, agent: &Agent, body: &[u8]) -> Result<Stream, Failure> {
        let mut request = (agent.post(&self.url))
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "text/event-stream");
        if let Some(key) = &self.config.api_key {
            request = request.header(header::AUTHORIZATION, key.bearer());
        }
        let sent = request.send(body);
        let response = sent.map_err(|error| Failure::transport(&error, &self.config))?;
        let response = ok(response)?;
        let body = response.into_body();
        let kind = body.mime_type().map(str::to_owned);
        let mut stream = Stream {
            reader: Box::new(body.into_reader()),
            parser: EventParser::default(),
            finish: None,
            usage: None,
        };
        match kind.as_deref() {
            None | Some("text/event-stream") => Ok(stream),
            Some(other) => {
                let mut beginning = Vec::new();
                // As much as there is, of what is no answer anyway.
                let _ = (&mut stream.reader).take(1024).read_to_end(&mut beginning);
                Err(Failure::new(
                    Cause::Malformed,
                    format!(
                        "the server answers with {other} in place of a stream (text/event-stream): {}",
                        excerpt(&beginning)
                    ),
                ))
            }
        }
    }
}

/// A response with status 200.
fn ok(response: ureq::http::Response<Body>) -> Result<ureq::http::Response<Body>, Failure> {
    let status = response.status().as_u16();
    if status == 200 {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let mut beginning = Vec::new();
    // The status says enough where the body cannot be read.
    let _ = (body.into_reader().take(ERROR_BODY)).read_to_end(&mut beginning);
    Err(Failure::status(status, &parts.headers, &beginning))
}

/// An answer on its way.
struct Stream {
    reader: Box<dyn Read>,
    parser: EventParser,
    finish: Option<Finish>,
    usage: Option<Usage>,
}

impl Stream {
    /// Reads up to the answer's end: `[DONE]`, or the end of the stream behind a reason to finish.
    fn follow(
        &mut self,
        mut tell: impl FnMut(String, String),
    ) -> Result<(Finish, Option<Usage>), Failure> {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = match self.reader.read(&mut buffer) {
                Ok(count) => count,
                // What came is all there is to say.
                Err(_) if self.finish.is_some() && self.usage.is_some() => 0,
                Err(error) => return Err(Failure::reading(&error)),
            };
            let events = match count {
                0 => std::mem::take(&mut self.parser)
                    .finish()
                    .into_iter()
                    .collect(),
                count => (self.parser.push(&buffer[..count])).map_err(|too_long| {
                    Failure::new(Cause::Malformed, format!("{too_long} in the stream"))
                })?,
            };
            for event in events {
                let piece = wire::read(&event)?;
                self.finish = piece.finish.or(self.finish);
                self.usage = piece.usage.or(self.usage);
                if !(piece.text.is_empty() && piece.thought.is_empty()) {
                    tell(piece.text, piece.thought);
                }
                if piece.done {
                    return self.ended("the server ended its stream (data: [DONE])");
                }
            }
            if count == 0 {
                return self.ended("the stream was cut off");
            }
        }
    }

    fn ended(&self, how: &str) -> Result<(Finish, Option<Usage>), Failure> {
        match self.finish {
            Some(finish) => Ok((finish, self.usage)),
            None => Err(Failure::new(
                Cause::CutOff,
                format!("{how} before its end: no finish_reason came"),
            )),
        }
    }

    /// Reads what is left.
    fn drain(mut self) {
        let mut rest = [0; 1024];
        while matches!(self.reader.read(&mut rest), Ok(1..)) {}
    }
}
