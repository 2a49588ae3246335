//! A proxy for the tests: HTTP with CONNECT and with whole URLs, or SOCKS 5, which keeps what it was asked.

use std::io::{BufRead, BufReader, Read, Write, copy};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// What the proxy does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// All that an HTTP proxy does.
    Http,
    /// It answers every request with this status.
    Refuse(u16),
    /// SOCKS 5, without a password.
    Socks,
}

/// The proxy; its threads end with the process.
pub(crate) struct Proxy {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub(crate) fn start(kind: Kind) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let proxy = Self {
            address: listener.local_addr().expect("bound"),
            asked: Arc::default(),
        };
        let asked = Arc::clone(&proxy.asked);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let asked = Arc::clone(&asked);
                thread::spawn(move || match kind {
                    Kind::Socks => socks(client, &asked),
                    Kind::Http => http(client, None, &asked),
                    Kind::Refuse(status) => http(client, Some(status), &asked),
                });
            }
        });
        proxy
    }

    /// `host:port`.
    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// The heads of all requests that came, or the targets that SOCKS was asked for.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("no panic").clone()
    }
}

/// A request's head.
fn head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn http(mut client: TcpStream, refuse: Option<u16>, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut server: Option<TcpStream> = None;
    while let Some(head) = head(&mut reader) {
        asked.lock().expect("no panic").push(head.clone());
        if let Some(status) = refuse {
            write!(client, "HTTP/1.1 {status} No\r\nContent-Length: 0\r\n\r\n").ok()?;
            continue;
        }
        let mut words = head.split(' ');
        let (method, target) = (words.next()?, words.next()?);
        if method == "CONNECT" {
            let server = TcpStream::connect(target).ok()?;
            client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").ok()?;
            pipe(client, reader, server);
            return Some(());
        }
        let rest = target.strip_prefix("http://")?;
        let (host, path) = rest.split_once('/')?;
        if server.is_none() {
            let made = TcpStream::connect(host).ok()?;
            let (mut answers, mut back) = (made.try_clone().ok()?, client.try_clone().ok()?);
            thread::spawn(move || copy(&mut answers, &mut back));
            server = Some(made);
        }
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.parse().ok())?
        });
        let mut body = vec![0; length.unwrap_or(0)];
        reader.read_exact(&mut body).ok()?;
        let server = server.as_mut()?;
        let head = head.replacen(target, &format!("/{path}"), 1);
        server.write_all(head.as_bytes()).ok()?;
        server.write_all(&body).ok()?;
    }
    Some(())
}

/// RFC 1928: no authentication, then CONNECT.
fn socks(mut client: TcpStream, asked: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(client.try_clone().ok()?);
    let mut take = |count: usize| {
        let mut bytes = vec![0; count];
        reader.read_exact(&mut bytes).ok().map(|()| bytes)
    };
    let methods = take(2)?[1];
    take(methods.into())?;
    client.write_all(&[5, 0]).ok()?;
    let kind = take(4)?[3];
    let host = match kind {
        1 => {
            let bytes = take(4)?;
            format!("{}.{}.{}.{}", bytes[0], bytes[1], bytes[2], bytes[3])
        }
        3 => {
            let length = take(1)?[0];
            String::from_utf8(take(length.into())?).ok()?
        }
        _ => return None,
    };
    let port = take(2)?;
    let target = format!("{host}:{}", u16::from_be_bytes([port[0], port[1]]));
    asked.lock().expect("no panic").push(target.clone());
    let server = TcpStream::connect(&target).ok()?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).ok()?;
    pipe(client, reader, server);
    Some(())
}

/// Passes bytes on in both directions until both have ended.
fn pipe(mut client: TcpStream, mut reader: BufReader<TcpStream>, mut server: TcpStream) {
    let (Ok(mut answers), Ok(end)) = (server.try_clone(), server.try_clone()) else {
        return;
    };
    thread::spawn(move || {
        let _ = copy(&mut answers, &mut client);
        let _ = client.shutdown(Shutdown::Both);
    });
    let _ = copy(&mut reader, &mut server);
    let _ = end.shutdown(Shutdown::Both);
}
