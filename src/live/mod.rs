//! The run while it goes on, over HTTP (`--stats-addr`): the profile's table, Prometheus text, and a
//! page. Read only: it knows `GET` and nothing that could be changed.
//!
//! Two threads: one waits for connections, one serves them all with sockets that never block. A
//! client that sends nothing, half a request or garbage costs a place in a list until its time is
//! over, and no thread. That is all of HTTP that is needed, so an asynchronous runtime and a web
//! framework (axum) would be some fifty crates for four addresses.

mod connection;
mod render;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::open_files;
use crate::profile;

use crate::stopwatch;
use connection::{Connection, Progress};
use render::Reading;

/// Connections at a time, those that wait to be looked at included; one more, and the one that is open
/// the longest is closed.
const MOST_CONNECTIONS: usize = 256;
/// What share of the files that this process may have open goes to connections (one in so many): the
/// rest is the run's, whatever clients do.
const SHARE_OF_FILES: usize = 8;
/// How often the counts are read for the rate.
const SAMPLE: Duration = Duration::from_millis(500);
/// What "now" means in tokens per second now.
const NOW: Duration = Duration::from_secs(3);

/// Starts to serve at `address` and returns where it is reached: port 0 is a free port. The server
/// ends with the process.
///
/// # Errors
/// Exit code 3 where the address cannot be had.
pub fn serve(address: SocketAddr) -> Result<SocketAddr> {
    let failed = |source: std::io::Error| {
        Error::preflight(format!("failed to serve the live figures at {address}"))
            .hint("let STATS_ADDR (--stats-addr) be an address of this machine with a free port; port 0 takes any free one")
            .caused_by(source)
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let places = Places::within(open_files::limit());
    let (sender, receiver) = sync_channel(places.waiting);
    let thread = |name: &str| std::thread::Builder::new().name(name.to_owned());
    thread("live-accept")
        .spawn(move || accept(&listener, &sender))
        .map_err(failed)?;
    thread("live-serve")
        .spawn(move || Server::new(receiver, places.open).run())
        .map_err(failed)?;
    Ok(bound)
}

/// An address, or a port alone, which is one of the loopback interface.
///
/// # Errors
/// What was expected.
pub fn parse_address(text: &str) -> std::result::Result<SocketAddr, String> {
    let port = text.strip_prefix(':').unwrap_or(text);
    if let Ok(port) = port.parse::<u16>() {
        return Ok((Ipv4Addr::LOCALHOST, port).into());
    }
    text.parse()
        .map_err(|_| "expected ADDRESS:PORT (127.0.0.1:0 is any free port) or a port".to_owned())
}

fn accept(listener: &TcpListener, to: &SyncSender<TcpStream>) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                if to.send(stream).is_err() {
                    return;
                }
            }
            // Out of file descriptors, most likely: connections end, and there are some again.
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// How many connections there may be, by where they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Places {
    open: usize,
    /// Accepted, and not yet looked at.
    waiting: usize,
}

impl Places {
    /// What a process gets that may have so many files open. One more is in the hand of the thread that
    /// accepts.
    fn within(files: usize) -> Self {
        let places = (files / SHARE_OF_FILES).clamp(3, MOST_CONNECTIONS) - 1;
        let waiting = (places / 4).max(1);
        Self {
            open: places - waiting,
            waiting,
        }
    }
}

struct Server {
    incoming: Receiver<TcpStream>,
    most: usize,
    /// In the order of their coming.
    open: VecDeque<Connection>,
    /// When, and how many tokens there were by then.
    samples: VecDeque<(Instant, u64)>,
}

impl Server {
    fn new(incoming: Receiver<TcpStream>, most: usize) -> Self {
        Self {
            incoming,
            most,
            open: VecDeque::new(),
            samples: VecDeque::new(),
        }
    }

    fn run(mut self) {
        loop {
            match self.incoming.recv_timeout(self.pause()) {
                Ok(stream) => self.take_in(stream),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            while let Ok(stream) = self.incoming.try_recv() {
                self.take_in(stream);
            }
            self.sample();
            self.advance();
        }
    }

    /// Until when nothing needs to be done: soon for those that have just come, later for those who
    /// let others wait.
    fn pause(&self) -> Duration {
        match self.open.back() {
            None => SAMPLE,
            Some(newest) if newest.age() < Duration::from_millis(50) => Duration::from_millis(2),
            Some(_) => Duration::from_millis(25),
        }
    }

    fn take_in(&mut self, stream: TcpStream) {
        if self.open.len() == self.most {
            self.open.pop_front();
        }
        self.open.extend(Connection::new(stream).ok());
    }

    fn sample(&mut self) {
        let now = stopwatch::now();
        let due = (self.samples.back()).is_none_or(|(last, _)| now.duration_since(*last) >= SAMPLE);
        if due {
            let live = profile::live().unwrap_or_default();
            self.samples.push_back((now, live.generated_tokens));
        }
        let old = |(at, _): &(Instant, u64)| now.duration_since(*at) > NOW;
        while self.samples.len() > 2 && self.samples.front().is_some_and(old) {
            self.samples.pop_front();
        }
    }

    /// Tokens per second, over the last seconds.
    fn rate(&self) -> f64 {
        match (self.samples.front(), self.samples.back()) {
            (Some((from, before)), Some((to, after))) if to > from => {
                let seconds = to.duration_since(*from).as_secs_f64();
                after.saturating_sub(*before) as f64 / seconds
            }
            _ => 0.0,
        }
    }

    fn advance(&mut self) {
        let rate = self.rate();
        // Read once for all who ask in this round, and only where somebody does.
        let mut reading: Option<Reading> = None;
        self.open.retain_mut(|connection| {
            let answer = |path: &str| {
                let reading = reading.get_or_insert_with(|| Reading::now(rate));
                render::answer(path, reading)
            };
            connection.advance(answer) == Progress::Open
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_loopback() {
        for text in ["9100", ":9100", "127.0.0.1:9100"] {
            let address = parse_address(text).expect(text);
            assert_eq!(address.to_string(), "127.0.0.1:9100");
        }
        assert_eq!(
            parse_address("0.0.0.0:0").expect("told so").to_string(),
            "0.0.0.0:0"
        );
        assert!(parse_address("[::1]:80").is_ok());
        for bad in ["", "localhost", "1.2.3.4", "70000", "a:1"] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn connections_take_a_share_of_the_files_only() {
        for (files, all) in [
            (usize::MAX, 256),
            (4096, 256),
            (1024, 128),
            (256, 32),
            (64, 8),
            (8, 3),
        ] {
            let places = Places::within(files);
            assert_eq!(places.open + places.waiting + 1, all, "{files}");
            assert!(places.open >= 1 && places.waiting >= 1, "{files}");
        }
    }

    #[test]
    fn an_address_that_is_taken_is_told() {
        let taken = serve(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("a free port");
        let error = serve(taken).expect_err("it is taken");
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
        assert!(error.hint_text().is_some());
    }
}
