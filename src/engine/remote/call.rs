//! One attempt: an HTTP request on its own thread, and its answer piece by piece. The thread has no
//! policy: retries and timeouts are decided elsewhere.

use std::io::Read;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use ureq::http::header;
use ureq::{Agent, Body};

use super::answer::{Answer, End, Part};
use super::failure::{Cause, Failure, excerpt};
use super::network::Network;
use super::{connection, json, reason};
use crate::config::{EndpointApi, RemoteConfig, Secrets};
use crate::engine::RequestId;

/// Maximum number of bytes read from an error's body.
const ERROR_BODY: u64 = 64 << 10;

/// A report from a call's thread to the engine.
#[derive(Debug)]
pub(super) struct News {
    pub(super) id: RequestId,
    /// Number of the attempt, unique within the engine.
    pub(super) attempt: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// Pieces of the answer that arrived in one read: they have one time.
    Chunks(Vec<Part>),
    /// What the server sent besides the answer, as the end of an error message.
    Beside(String),
    /// The answer is complete.
    Done(End),
    /// The attempt failed.
    Failed(Failure),
    /// After [`What::Done`]: the stream has ended, and the connection is free.
    Drained,
}

/// What all attempts share.
#[derive(Debug)]
pub(super) struct Caller {
    config: RemoteConfig,
    network: Arc<Network>,
    secrets: Secrets,
    url: String,
}

impl Caller {
    pub(super) fn new(config: &RemoteConfig, network: Arc<Network>) -> Self {
        let path = match config.endpoint_api {
            EndpointApi::Chat => "/chat/completions",
            EndpointApi::Completions => "/completions",
        };
        Self {
            config: config.clone(),
            network,
            secrets: config.secrets(),
            url: config.server.endpoint.url(path),
        }
    }

    /// Gets another URL of the server. The body is cut off at 4 MiB.
    ///
    /// # Errors
    /// Any failure, including a status other than 200.
    pub(super) fn get(&self, agent: &Agent, url: &str) -> Result<Vec<u8>, Failure> {
        self.hidden(|| {
            let sent = self.network.with_headers(agent.get(url)).call();
            let response = sent.map_err(|error| connection::failed(&error, &self.config))?;
            let response = self.ok(response)?;
            let mut body = Vec::new();
            (response
                .into_body()
                .into_reader()
                .take(4 << 20)
                .read_to_end(&mut body))
            .map_err(|error| connection::broken(&error, &self.config))?;
            Ok(body)
        })
    }

    /// Makes the attempt and reports on it until it has ended.
    pub(super) fn run(
        &self,
        agent: &Agent,
        body: &Arc<Vec<u8>>,
        id: RequestId,
        attempt: u64,
        news: &Sender<News>,
    ) {
        // The engine may be gone.
        let tell = |what| {
            let _ = news.send(News { id, attempt, what });
        };
        let answered = self.hidden(|| {
            let mut stream = self.open(agent, body)?;
            let end = stream.follow(&self.config, |what| match what {
                What::Beside(line) => tell(What::Beside(self.secrets.hide(&line))),
                what => tell(what),
            })?;
            Ok((stream, end))
        });
        match answered {
            Err(failure) => tell(What::Failed(failure)),
            Ok((stream, end)) => {
                tell(What::Done(end));
                // A connection can be reused once its stream has been read to the end.
                stream.drain();
                tell(What::Drained);
            }
        }
    }

    /// Runs `call` and removes secrets from its error message.
    fn hidden<T>(&self, call: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
        call().map_err(|mut failure| {
            failure.message = self.secrets.hide(&failure.message);
            failure
        })
    }

    /// Turns any status other than 200 into a failure.
    fn ok(
        &self,
        response: ureq::http::Response<Body>,
    ) -> Result<ureq::http::Response<Body>, Failure> {
        let status = response.status().as_u16();
        if status == 200 {
            return Ok(response);
        }
        let (parts, body) = response.into_parts();
        let mut beginning = Vec::new();
        // If the body cannot be read, the status is enough.
        let _ = (body.into_reader().take(ERROR_BODY)).read_to_end(&mut beginning);
        let failure = Failure::status(status, &parts.headers, &reason::said(&beginning));
        Err(connection::by_way_of(failure, &self.config))
    }

    /// Sends the request and returns the stream of its answer.
    fn open(&self, agent: &Agent, body: &[u8]) -> Result<Stream, Failure> {
        let mut request = (agent.post(&self.url)).header(header::CONTENT_TYPE, "application/json");
        if !self.network.has_header(&header::ACCEPT) {
            request = request.header(header::ACCEPT, "text/event-stream");
        }
        let sent = self.network.with_headers(request).send(body);
        let response = sent.map_err(|error| connection::failed(&error, &self.config))?;
        let response = self.ok(response)?;
        let kind = media_type(response.headers().get(header::CONTENT_TYPE));
        let mut stream = Stream {
            reader: Box::new(response.into_body().into_reader()),
            answer: Answer::default(),
        };
        match kind.as_deref() {
            None | Some("text/event-stream") => Ok(stream),
            Some(other) => {
                let mut beginning = Vec::new();
                // It is not an answer anyway; read what there is.
                let _ = (&mut stream.reader)
                    .take(ERROR_BODY)
                    .read_to_end(&mut beginning);
                Err(no_stream(other, &beginning))
            }
        }
    }
}

/// The media type without parameters, in lower case: it is case-insensitive (RFC 9110, §8.3.1).
fn media_type(header: Option<&header::HeaderValue>) -> Option<String> {
    let text = String::from_utf8_lossy(header?.as_bytes()).to_ascii_lowercase();
    let kind = text.split([';', ',']).next().unwrap_or_default().trim();
    Some(kind.to_owned()).filter(|kind| !kind.is_empty())
}

/// An answer that is not a stream: an error despite its status, or something else.
fn no_stream(kind: &str, body: &[u8]) -> Failure {
    let value = json::parse(&String::from_utf8_lossy(body)).map(|parsed| parsed.value);
    let reported = value.as_ref().and_then(reason::reported);
    reported.unwrap_or_else(|| {
        let message = format!(
            "the server answered with {kind} instead of a stream (text/event-stream): {}",
            excerpt(body)
        );
        Failure::new(Cause::Malformed, message)
    })
}

struct Stream {
    reader: Box<dyn Read>,
    answer: Answer,
}

impl Stream {
    /// Reads up to the end of the answer: `[DONE]`, or the end of the stream after a finish reason.
    fn follow(&mut self, config: &RemoteConfig, tell: impl Fn(What)) -> Result<End, Failure> {
        let mut told = String::new();
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = match self.reader.read(&mut buffer) {
                Ok(count) => count,
                // The answer is already complete.
                Err(_) if self.answer.is_whole() => 0,
                Err(error) => return Err(self.answer.broken(connection::broken(&error, config))),
            };
            let mut parts = Vec::new();
            let mut keep = |part| parts.push(part);
            let end = match count {
                0 => Ok(true),
                _ => self.answer.push(&buffer[..count], &mut keep),
            };
            let end = match end {
                Ok(false) => None,
                Ok(true) => Some(self.answer.finish(&mut keep)),
                Err(failure) => Some(Err(failure)),
            };
            if !parts.is_empty() {
                tell(What::Chunks(parts));
            }
            if let Some(end) = end {
                return end;
            }
            let beside = self.answer.beside();
            if beside != told {
                told.clone_from(&beside);
                tell(What::Beside(beside));
            }
        }
    }

    /// Reads the rest of the stream.
    fn drain(mut self) {
        let mut rest = [0; 1024];
        while matches!(self.reader.read(&mut rest), Ok(1..)) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_case_insensitive() {
        for text in [
            "text/event-stream",
            "Text/Event-Stream; charset=UTF-8",
            "text/event-stream;charset=utf-8",
            " text/event-stream , text/event-stream",
        ] {
            let value = header::HeaderValue::from_str(text).expect("a value");
            assert_eq!(
                media_type(Some(&value)).as_deref(),
                Some("text/event-stream"),
                "{text}"
            );
        }
        assert_eq!(media_type(None), None);
        assert_eq!(
            media_type(Some(&header::HeaderValue::from_static(" "))),
            None
        );
    }

    #[test]
    fn an_error_despite_a_good_status_is_reported() {
        let refused = no_stream(
            "application/json",
            br#"{"error": {"code": 400, "message": "too long"}}"#,
        );
        assert_eq!(refused.cause, Cause::Refused);
        assert!(refused.message.ends_with("too long"), "{}", refused.message);
        let page = no_stream("text/html", b"<h1>Welcome</h1>");
        assert_eq!(page.cause, Cause::Malformed);
        assert!(
            page.message.contains("text/html instead of a stream"),
            "{}",
            page.message
        );
    }
}
