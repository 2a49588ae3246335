//! A connection: reads one request, writes the answer, and closes. Nothing here blocks.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::render::Answer;
use crate::stopwatch;

/// Lifetime of a connection, whatever the client does.
const MOST_TIME: Duration = Duration::from_secs(5);
/// Upper bound on the size of a request in bytes, including headers.
const MOST_BYTES: usize = 8192;

#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    since: Instant,
    request: Vec<u8>,
    /// Set once there is an answer; bytes from `written` on are not sent yet.
    answer: Option<Vec<u8>>,
    written: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Open,
    Closed,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            since: stopwatch::now(),
            request: Vec::new(),
            answer: None,
            written: 0,
        })
    }

    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Makes progress without blocking. `answer` produces the answer to a `GET` of a path.
    pub(super) fn advance(&mut self, answer: impl FnOnce(&str) -> Answer) -> Progress {
        if self.age() > MOST_TIME {
            return Progress::Closed;
        }
        if self.answer.is_none() {
            let is_whole = match self.read() {
                Ok(is_whole) => is_whole,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Progress::Open,
                Err(_) => return Progress::Closed,
            };
            self.answer = match parse(&self.request) {
                Parsed::Get(path) => Some(answer(&path).bytes(true)),
                Parsed::Head(path) => Some(answer(&path).bytes(false)),
                Parsed::Refused(refusal) => Some(refusal.bytes(true)),
                Parsed::Partial if is_whole => return Progress::Closed,
                Parsed::Partial => return Progress::Open,
            };
        }
        match self.write() {
            Ok(()) => {
                let _ = self.stream.shutdown(Shutdown::Write);
                Progress::Closed
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => Progress::Open,
            Err(_) => Progress::Closed,
        }
    }

    /// Reads the available bytes; `true` if no more will come, or the size limit is reached.
    fn read(&mut self) -> std::io::Result<bool> {
        let mut buffer = [0; 2048];
        let mut has_read = false;
        while self.request.len() < MOST_BYTES {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Ok(true),
                Ok(count) => {
                    has_read = true;
                    self.request.extend_from_slice(&buffer[..count]);
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock && has_read => {
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }

    fn write(&mut self) -> std::io::Result<()> {
        let answer = self.answer.as_deref().unwrap_or_default();
        while self.written < answer.len() {
            match self.stream.write(&answer[self.written..]) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Parsed {
    Partial,
    Get(String),
    Head(String),
    Refused(Answer),
}

fn parse(bytes: &[u8]) -> Parsed {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let is_complete = match request.parse(bytes) {
        Ok(status) => status.is_complete(),
        Err(_) => return Parsed::Refused(Answer::error("400 Bad Request")),
    };
    match (request.method, request.path) {
        (Some(method), _) if !matches!(method, "GET" | "HEAD") => {
            Parsed::Refused(Answer::error("405 Method Not Allowed"))
        }
        (Some(method), Some(target)) if is_complete => {
            let hosts: Vec<&[u8]> = (request.headers.iter())
                .filter(|header| header.name.eq_ignore_ascii_case("host"))
                .map(|header| header.value)
                .collect();
            // RFC 9112, section 3.2: exactly one Host header; only HTTP/1.0 may omit it.
            if hosts.len() > 1 || (hosts.is_empty() && request.version != Some(0)) {
                return Parsed::Refused(Answer::error("400 Bad Request"));
            }
            let (host, target) = parts(target);
            if !hosts.into_iter().chain(host).all(is_ours) {
                return Parsed::Refused(Answer::error("403 Forbidden"));
            }
            let path = target.split('?').next().unwrap_or_default().to_owned();
            match method {
                "HEAD" => Parsed::Head(path),
                _ => Parsed::Get(path),
            }
        }
        _ if bytes.len() >= MOST_BYTES => {
            Parsed::Refused(Answer::error("431 Request Header Fields Too Large"))
        }
        _ => Parsed::Partial,
    }
}

/// Splits a request target into host and path. Clients that take this server for a proxy send the
/// absolute form (RFC 9112, section 3.2.2).
fn parts(target: &str) -> (Option<&[u8]>, &str) {
    let address = match target.split_once("://") {
        Some((scheme, address)) if scheme.eq_ignore_ascii_case("http") => address,
        _ => return (None, target),
    };
    let (host, path) = address.split_at(address.find(['/', '?']).unwrap_or(address.len()));
    let path = match path {
        path if path.starts_with('/') => path,
        // Empty, or only a query.
        _ => "/",
    };
    (Some(host.as_bytes()), path)
}

/// Whether a requested host can be this server: an address, or a name of this machine. Otherwise a
/// malicious page whose name resolves to this machine (DNS rebinding) could read the statistics
/// through the visitor's browser, which always sends that name.
fn is_ours(host: &[u8]) -> bool {
    let Ok(host) = std::str::from_utf8(host) else {
        return false;
    };
    if let Some(rest) = host.strip_prefix('[') {
        let address = rest.split_once(']');
        return address.is_some_and(|(address, port)| {
            address.parse::<Ipv6Addr>().is_ok() && (port.is_empty() || port.starts_with(':'))
        });
    }
    let name = host.split(':').next().unwrap_or_default();
    let name = name.strip_suffix('.').unwrap_or(name);
    // RFC 6761, section 6.3: every name below `localhost` is this machine.
    let last = name.rsplit('.').next().unwrap_or_default();
    name.parse::<IpAddr>().is_ok() || last.eq_ignore_ascii_case("localhost")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_get_and_head_are_allowed() {
        let get = |path: &str| Parsed::Get(path.to_owned());
        assert_eq!(
            parse(b"GET /stats?x=1 HTTP/1.1\r\nHost: [::1]\r\n\r\n"),
            get("/stats")
        );
        assert_eq!(
            parse(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
            Parsed::Head("/".to_owned())
        );
        for partial in [&b""[..], b"G", b"GET /stats", b"GET / HTTP/1.1\r\nHost: a"] {
            assert_eq!(parse(partial), Parsed::Partial);
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let Parsed::Refused(answer) = parse(format!("{method} / HTTP/1.1\r\n").as_bytes())
            else {
                panic!("{method} is refused");
            };
            assert!(answer.status.starts_with("405"), "{method}");
        }
        assert!(matches!(parse(b"\x16\x03\x01\x02"), Parsed::Refused(_)));
        let long = [b"GET / HTTP/1.1\r\nA: ".as_slice(), &[b'a'; MOST_BYTES]].concat();
        assert!(matches!(parse(&long), Parsed::Refused(_)));
    }

    #[test]
    fn foreign_host_names_are_rejected() {
        let asked =
            |host: &str| parse(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").as_bytes());
        for ours in [
            "localhost",
            "localhost:9100",
            "LOCALHOST.",
            "run.localhost:1",
            "127.0.0.1",
            "192.168.1.7:9100",
            "[::1]:9100",
            "[fe80::1]",
        ] {
            assert_eq!(asked(ours), Parsed::Get("/".to_owned()), "{ours}");
        }
        for other in [
            "evil.example",
            "localhost.evil.example:9100",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "",
            "[evil]",
            "[::1",
            "[::1]evil",
            "\u{e4}",
        ] {
            let Parsed::Refused(answer) = asked(other) else {
                panic!("{other} is refused");
            };
            assert!(answer.status.starts_with("403"), "{other}");
        }
    }

    #[test]
    fn exactly_one_host_is_required_except_in_http_1_0() {
        let status = |request: &str| match parse(request.as_bytes()) {
            Parsed::Refused(answer) => answer.status.to_owned(),
            other => format!("{other:?}"),
        };
        let get = |path: &str| format!("{:?}", Parsed::Get(path.to_owned()));
        assert_eq!(status("GET /stats HTTP/1.1\r\n\r\n"), "400 Bad Request");
        assert_eq!(status("GET /stats HTTP/1.0\r\n\r\n"), get("/stats"));
        let two = "GET / HTTP/1.1\r\nHost: localhost\r\nhost: localhost\r\n\r\n";
        assert_eq!(status(two), "400 Bad Request");
        assert_eq!(
            status("GET / HTTP/1.0\r\nHost: evil.example\r\n\r\n"),
            "403 Forbidden"
        );
    }

    #[test]
    fn absolute_form_targets_are_accepted() {
        let asked = |target: &str| {
            let request = format!("GET {target} HTTP/1.1\r\nHost: 127.0.0.1:1\r\n\r\n");
            parse(request.as_bytes())
        };
        for (target, path) in [
            ("http://127.0.0.1/stats", "/stats"),
            ("HTTP://localhost:9100/stats?x=http://a/", "/stats"),
            ("http://127.0.0.1", "/"),
            ("http://127.0.0.1?x", "/"),
            ("http://[::1]:1/metrics", "/metrics"),
        ] {
            assert_eq!(asked(target), Parsed::Get(path.to_owned()), "{target}");
        }
        for target in [
            "http://evil.example/stats",
            "http://127.0.0.1@evil.example/",
            "http:///",
        ] {
            let Parsed::Refused(answer) = asked(target) else {
                panic!("{target} is refused");
            };
            assert!(answer.status.starts_with("403"), "{target}");
        }
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            parse(&bytes);
        }
    }
}
