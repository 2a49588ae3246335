//! A server with OpenAI's interface that does as a test says, faults included: bytes over TCP, so
//! that it can send what no HTTP library would.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

/// What the server does for a request, one after another.
#[derive(Debug, Clone)]
pub(crate) enum Act {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Does nothing for a while.
    Wait(Duration),
    /// Does nothing until the client has closed the connection.
    Hang,
    /// Closes the connection.
    Close,
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Value,
    /// How many POSTs came before it.
    pub(crate) number: usize,
}

impl Received {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let same = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
        (self.headers.iter().find(same)).map(|(_, value)| value.as_str())
    }

    /// The last thing that the user said, or the prompt.
    pub(crate) fn prompt(&self) -> String {
        let messages = self.body["messages"].as_array();
        let last = messages.and_then(|messages| messages.last()?["content"].as_str());
        (last.or(self.body["prompt"].as_str()))
            .unwrap_or_default()
            .to_owned()
    }
}

/// The server; its threads end with the process.
pub(crate) struct Server {
    address: SocketAddr,
    scheme: &'static str,
    received: Arc<Mutex<Vec<Received>>>,
    connections: Arc<AtomicUsize>,
    hung_up: Arc<AtomicUsize>,
}

type Handler = dyn Fn(&Received) -> Option<Vec<Act>> + Send + Sync;

impl Server {
    /// Starts on a free port. What `handler` has nothing to say to is answered as a server should:
    /// a list of one model, and a stream of three words with its usage.
    pub(crate) fn start(
        handler: impl Fn(&Received) -> Option<Vec<Act>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::listen(listener, None, handler)
    }

    /// The same over TLS.
    pub(crate) fn start_tls(
        tls: Arc<rustls::ServerConfig>,
        handler: impl Fn(&Received) -> Option<Vec<Act>> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        Self::listen(listener, Some(tls), handler)
    }

    /// The same on a port that was chosen before.
    pub(crate) fn listen(
        listener: TcpListener,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Received) -> Option<Vec<Act>> + Send + Sync + 'static,
    ) -> Self {
        let server = Self {
            address: listener.local_addr().expect("bound"),
            scheme: if tls.is_some() { "https" } else { "http" },
            received: Arc::default(),
            connections: Arc::default(),
            hung_up: Arc::default(),
        };
        let handler: Arc<Handler> = Arc::new(handler);
        let posts = Arc::new(AtomicUsize::new(0));
        let (received, connections) = (
            Arc::clone(&server.received),
            Arc::clone(&server.connections),
        );
        let hung_up = Arc::clone(&server.hung_up);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else {
                    return;
                };
                connections.fetch_add(1, Ordering::SeqCst);
                let (handler, posts) = (Arc::clone(&handler), Arc::clone(&posts));
                let (received, hung_up) = (Arc::clone(&received), Arc::clone(&hung_up));
                let _ = stream.set_nodelay(true);
                let tls = tls.clone();
                thread::spawn(move || match tls {
                    None => serve(stream, &*handler, &posts, &received, &hung_up),
                    Some(tls) => {
                        let session = rustls::ServerConnection::new(tls).expect("a sound setting");
                        let stream = rustls::StreamOwned::new(session, stream);
                        serve(stream, &*handler, &posts, &received, &hung_up);
                    }
                });
            }
        });
        server
    }

    /// A server without faults.
    pub(crate) fn sound() -> Self {
        Self::start(|_| None)
    }

    /// The first POSTs are answered with these, the others as they should be.
    pub(crate) fn first(answers: Vec<Vec<Act>>) -> Self {
        Self::start(move |request| {
            let post = request.method == "POST";
            answers.get(request.number).filter(|_| post).cloned()
        })
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("{}://{}/v1", self.scheme, self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// All that came.
    pub(crate) fn received(&self) -> Vec<Received> {
        self.received.lock().expect("no panic").clone()
    }

    pub(crate) fn posts(&self) -> Vec<Received> {
        let all = self.received();
        all.into_iter()
            .filter(|request| request.method == "POST")
            .collect()
    }

    /// How many connections were made.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// How many of those that hung the client has closed.
    pub(crate) fn hung_up(&self) -> usize {
        self.hung_up.load(Ordering::SeqCst)
    }
}

fn serve(
    stream: impl Read + Write,
    handler: &Handler,
    posts: &AtomicUsize,
    received: &Mutex<Vec<Received>>,
    hung_up: &AtomicUsize,
) {
    let mut reader = BufReader::new(stream);
    while let Some(mut request) = read(&mut reader) {
        if request.method == "POST" {
            request.number = posts.fetch_add(1, Ordering::SeqCst);
        }
        received.lock().expect("no panic").push(request.clone());
        let acts = handler(&request).unwrap_or_else(|| sound(&request));
        for act in acts {
            match act {
                Act::Send(bytes) => {
                    let stream = reader.get_mut();
                    if stream
                        .write_all(&bytes)
                        .and_then(|()| stream.flush())
                        .is_err()
                    {
                        return;
                    }
                }
                Act::Wait(time) => thread::sleep(time),
                Act::Hang => {
                    let _ = reader.read(&mut [0; 1]);
                    hung_up.fetch_add(1, Ordering::SeqCst);
                    return;
                }
                Act::Close => return,
            }
        }
    }
}

fn read(reader: &mut impl BufRead) -> Option<Received> {
    let mut line = String::new();
    reader
        .read_line(&mut line)
        .ok()
        .filter(|count| *count > 0)?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_owned(), value.to_owned())),
            None => break,
        }
    }
    let mut request = Received {
        method,
        path,
        headers,
        body: Value::Null,
        number: 0,
    };
    let length = request
        .header("content-length")
        .map_or(0, |text| text.parse().unwrap_or(0));
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    request.body = serde_json::from_slice(&body).unwrap_or_default();
    Some(request)
}

/// What a server without faults does.
pub(crate) fn sound(request: &Received) -> Vec<Act> {
    match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/v1/models") => vec![json_answer(
            200,
            &json!({"object": "list", "data": [{"id": "test-model"}]}),
        )],
        ("POST", "/v1/chat/completions" | "/v1/completions") => answer(&WORDS, Some(USAGE)),
        _ => vec![json_answer(404, &json!({"detail": "Not Found"}))],
    }
}

/// What the model always says.
pub(crate) const WORDS: [&str; 3] = ["All ", "is ", "well."];

/// Prompt tokens, cached ones of them, generated ones.
pub(crate) const USAGE: (usize, usize, usize) = (20, 16, 4);

pub(crate) fn json_answer(status: u16, body: &Value) -> Act {
    raw(status, "application/json", &[], body.to_string().as_bytes())
}

/// An answer of a known length.
pub(crate) fn raw(status: u16, content_type: &str, headers: &[(&str, &str)], body: &[u8]) -> Act {
    let mut head = format!(
        "HTTP/1.1 {status} Status\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n",
        body.len()
    );
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    Act::Send([head.as_bytes(), body].concat())
}

/// The head of a stream.
pub(crate) fn head() -> Act {
    Act::Send(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n\
          Transfer-Encoding: chunked\r\n\r\n"
            .to_vec(),
    )
}

/// A chunk of HTTP with these bytes.
pub(crate) fn chunk(bytes: &[u8]) -> Act {
    Act::Send(chunk_of(bytes))
}

fn chunk_of(bytes: &[u8]) -> Vec<u8> {
    [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat()
}

pub(crate) fn event(data: &str) -> Act {
    chunk(format!("data: {data}\n\n").as_bytes())
}

/// A word, in the forms of both interfaces.
pub(crate) fn word(text: &str) -> Act {
    event(
        &json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
            .to_string(),
    )
}

pub(crate) fn finish(reason: &str) -> Act {
    event(&json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}).to_string())
}

/// The end of a stream, in HTTP's terms.
pub(crate) fn end() -> Act {
    Act::Send(b"0\r\n\r\n".to_vec())
}

/// A whole answer.
pub(crate) fn answer(words: &[&str], usage: Option<(usize, usize, usize)>) -> Vec<Act> {
    let role = json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]});
    let mut acts = vec![head(), event(&role.to_string())];
    acts.extend(words.iter().map(|text| word(text)));
    acts.push(finish("stop"));
    if let Some((prompt, cached, decode)) = usage {
        acts.push(event(
            &json!({"choices": [], "usage": {
                "prompt_tokens": prompt,
                "completion_tokens": decode,
                "total_tokens": prompt + decode,
                "prompt_tokens_details": {"cached_tokens": cached},
            }})
            .to_string(),
        ));
    }
    // In one write, as far as the client can tell: its connection is free with its answer.
    acts.push(Act::Send(
        [chunk_of(b"data: [DONE]\n\n"), b"0\r\n\r\n".to_vec()].concat(),
    ));
    acts
}
