//! What the HTTP interface adds to the time to the first token and to each further one: a request over loopback
//! and the same request submitted to an engine in this process, in turns.
//!
//! `cargo bench --bench serve`

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::Instant;

use flowbench::config::{Backend, DeviceChoice, GpuSettings, ServerSettings};
use flowbench::engine::{
    Engine, EventKind, LocalEngine, LocalOptions, Message, ModelFile, ModelFormat, ModelSource,
    Origin, Request, RequestOptions, Role, Sampling,
};
use flowbench::serve;

#[path = "../tests/support/default_model.rs"]
mod default_model;

const PAIRS: usize = 60;
const TOKENS: usize = 48;

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

fn load(path: &Path) -> LocalEngine {
    let file = ModelFile {
        path: path.to_owned(),
        format: ModelFormat::Gguf,
        source: ModelSource::Path,
        sha256: None,
    };
    let options = LocalOptions {
        device: DeviceChoice::Cpu,
        backend: Backend::Auto,
        gpu: GpuSettings::default(),
        max_sequences: 8,
        reuse: false,
        kv_bytes: None,
        context: None,
        speculate: false,
    };
    LocalEngine::load(&file, &options).expect("loads")
}

fn prompt(pair: usize) -> String {
    format!("{pair}: name a fruit, a river and a bird, and say a sentence about each.")
}

/// Milliseconds to the first token, and from it to the end by token.
fn in_process(engine: &mut dyn Engine, pair: usize) -> [f64; 2] {
    let start = Instant::now();
    let message = Message {
        role: Role::User,
        content: prompt(pair),
    };
    let request = Request {
        origin: Origin::default(),
        messages: [message].into(),
        max_tokens: TOKENS,
        ignore_eos: true,
        sampling: Sampling::default(),
        options: RequestOptions::default(),
    };
    engine.submit(request).expect("fits");
    let mut first = None;
    loop {
        for event in engine.poll().expect("goes on") {
            match event.kind {
                EventKind::Token(_) => {
                    first.get_or_insert_with(|| start.elapsed());
                }
                EventKind::Finished(_) => return times(first.expect("a token"), start.elapsed()),
                _ => {}
            }
        }
    }
}

fn times(first: std::time::Duration, whole: std::time::Duration) -> [f64; 2] {
    let each = (whole - first).as_secs_f64() / (TOKENS - 1) as f64;
    [first.as_secs_f64() * 1e3, each * 1e3]
}

fn over_http(stream: &mut BufReader<TcpStream>, model: &str, pair: usize) -> [f64; 2] {
    let body = format!(
        "{{\"model\": \"{model}\", \"stream\": true, \"temperature\": 0, \"ignore_eos\": true, \
         \"max_tokens\": {TOKENS}, \"messages\": [{{\"role\": \"user\", \"content\": \"{}\"}}]}}",
        prompt(pair)
    );
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let start = Instant::now();
    stream
        .get_mut()
        .write_all(request.as_bytes())
        .expect("sent");
    let mut first = None;
    let mut line = String::new();
    loop {
        line.clear();
        stream.read_line(&mut line).expect("an answer");
        if line.contains("\"delta\":{\"content\":") {
            first.get_or_insert_with(|| start.elapsed());
        }
        if line.contains("[DONE]") {
            let times = times(first.expect("text"), start.elapsed());
            // The last chunk, so that the connection can be used again.
            while line != "0\r\n" {
                line.clear();
                stream.read_line(&mut line).expect("the end");
            }
            stream.read_line(&mut line).expect("the end");
            return times;
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

#[expect(clippy::print_stdout, reason = "what a benchmark is for")]
fn main() {
    let Some(path) = default_model::test_model() else {
        return;
    };
    let (tell, address) = channel();
    let served = path.clone();
    let server = std::thread::spawn(move || {
        let mut engine = load(&served);
        let model = engine.info().model.clone();
        let settings = ServerSettings {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            api_key: None,
            allow_hosts: Vec::new(),
            aliases: Vec::new(),
            concurrency: 8,
            max_queue: 8,
            max_tokens: None,
            max_body: 1 << 20,
            seed: 0,
        };
        let listener = serve::bind(settings.address).expect("a port");
        serve::serve(&mut engine, listener, &settings, &INTERRUPTED, |address| {
            tell.send((address, model)).expect("waited for");
            Ok(())
        })
        .expect("serves");
    });
    let mut engine = load(&path);
    let (address, model) = address.recv().expect("starts");
    let stream = TcpStream::connect(address).expect("listens");
    stream.set_nodelay(true).expect("a socket");
    let mut stream = BufReader::new(stream);
    let mut measured: [[Vec<f64>; 2]; 2] = Default::default();
    for pair in 0..=PAIRS {
        let own = in_process(&mut engine, pair);
        let http = over_http(&mut stream, &model, pair);
        // The first pair warms up.
        for (which, times) in [own, http].into_iter().enumerate().filter(|_| pair > 0) {
            for (what, time) in times.into_iter().enumerate() {
                measured[which][what].push(time);
            }
        }
    }
    for (what, name) in ["time to first token", "time per further token"]
        .into_iter()
        .enumerate()
    {
        let pairs = measured[0][what].iter().zip(&measured[1][what]);
        let added = median(pairs.map(|(own, http)| http - own).collect());
        println!(
            "{name}: in process {:.3} ms, over HTTP {:.3} ms, median of what is added {added:.3} ms ({PAIRS} pairs)",
            median(measured[0][what].clone()),
            median(measured[1][what].clone()),
        );
    }
    INTERRUPTED.store(true, Ordering::Relaxed);
    server.join().expect("ends");
}
