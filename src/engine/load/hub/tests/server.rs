//! A small hub server with injectable faults.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::hash;

/// A hub server: `GET /api/models/NAME/revision/REVISION` lists files, `GET
/// /NAME/resolve/REVISION/FILE` returns one.
pub(super) struct TestHub {
    pub(super) endpoint: String,
    pub(super) state: Arc<HubState>,
}

#[derive(Default)]
pub(super) struct HubState {
    /// Content by `NAME/FILE`.
    files: Mutex<HashMap<String, Vec<u8>>>,
    /// Request line and range of each request.
    requests: Mutex<Vec<String>>,
    /// Number of upcoming bodies to truncate half way.
    pub(super) cuts: AtomicUsize,
    /// Number of upcoming bodies to stop half way, keeping the connection open.
    pub(super) stalls: AtomicUsize,
    /// If not 0, send ETags with a wrong digest.
    pub(super) lies: AtomicUsize,
    /// If not 0, answer everything with this status; if 1, do not answer at all.
    pub(super) status: AtomicUsize,
}

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

impl TestHub {
    pub(super) fn start(files: &[(&str, &[u8])]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(HubState::default());
        for (name, content) in files {
            state
                .files
                .lock()
                .unwrap()
                .insert((*name).to_owned(), content.to_vec());
        }
        let serving = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&serving);
                std::thread::spawn(move || state.answer(stream));
            }
        });
        Self { endpoint, state }
    }

    pub(super) fn requests(&self) -> Vec<String> {
        self.state.requests.lock().unwrap().clone()
    }
}

fn take_one(counter: &AtomicUsize) -> bool {
    counter
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
            count.checked_sub(1)
        })
        .is_ok()
}

impl HubState {
    fn answer(&self, mut stream: TcpStream) -> Option<()> {
        let mut lines = BufReader::new(stream.try_clone().ok()?).lines();
        let request = lines.next()?.ok()?;
        let mut range = None;
        for line in lines.map_while(std::result::Result::ok) {
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.to_lowercase().strip_prefix("range: bytes=") {
                range = Some(value.to_owned());
            }
        }
        let range = range.unwrap_or_default();
        self.requests
            .lock()
            .ok()?
            .push(format!("{request} {range}"));
        match self.status.load(Ordering::SeqCst) {
            0 => {}
            1 => {
                // Keeps the connection open until the client gives up.
                let _ = stream.read(&mut [0]);
                return None;
            }
            status => return respond(&mut stream, status, "", b""),
        }
        let path = request
            .split(' ')
            .nth(1)?
            .trim_start_matches('/')
            .to_owned();
        let files = self.files.lock().ok()?.clone();
        if let Some(rest) = path.strip_prefix("api/models/") {
            let name = rest.split("/revision/").next()?;
            let prefix = format!("{name}/");
            let mut siblings: Vec<_> = files
                .keys()
                .filter_map(|key| key.strip_prefix(&prefix))
                .collect();
            if siblings.is_empty() {
                return respond(&mut stream, 404, "", b"");
            }
            siblings.sort_unstable();
            let siblings: Vec<_> = siblings
                .into_iter()
                .map(|file| serde_json::json!({"rfilename": file}))
                .collect();
            let body = serde_json::json!({"siblings": siblings, "sha": COMMIT}).to_string();
            return respond(&mut stream, 200, "", body.as_bytes());
        }
        let (name, file) = path.split_once("/resolve/")?;
        let file = file.split_once('/')?.1;
        let Some(content) = files.get(&format!("{name}/{file}")) else {
            return respond(&mut stream, 404, "", b"");
        };
        let (from, to) = range.split_once('-')?;
        let from: usize = from.parse().ok()?;
        let to = to.parse().map_or(content.len(), |to: usize| to + 1);
        let mut etag = hash::sha256(content);
        if self.lies.load(Ordering::SeqCst) > 0 {
            etag = hash::sha256(b"something else");
        }
        let headers = format!(
            "ETag: \"{etag}\"\r\nX-Repo-Commit: {COMMIT}\r\nContent-Range: bytes {from}-{}/{}\r\n",
            to.saturating_sub(1),
            content.len()
        );
        let body = &content[from.min(to)..to];
        // The metadata request asks for one byte; faults apply to file bodies only.
        let half = from + body.len() / 2;
        let is_file = body.len() > 1;
        if is_file && take_one(&self.cuts) {
            return respond_in_part(&mut stream, &headers, body.len(), &content[from..half]);
        }
        if is_file && take_one(&self.stalls) {
            respond_in_part(&mut stream, &headers, body.len(), &content[from..half])?;
            let _ = stream.read(&mut [0]);
            return None;
        }
        respond(&mut stream, 206, &headers, body)
    }
}

fn respond(stream: &mut TcpStream, status: usize, headers: &str, body: &[u8]) -> Option<()> {
    let head = format!(
        "HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body).ok()
}

fn respond_in_part(
    stream: &mut TcpStream,
    headers: &str,
    length: usize,
    part: &[u8],
) -> Option<()> {
    let head = format!(
        "HTTP/1.1 206 Status\r\nConnection: close\r\nContent-Length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(part).ok()?;
    stream.flush().ok()
}
