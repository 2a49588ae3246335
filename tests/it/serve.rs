//! `flowbench serve`, end to end: on recorded answers, and on the tiny model.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use crate::common::Workspace;
use crate::tiny_model;

const SCRIPT: &str = r#"{"output": "One two three.\n\nSTOP here, größer 你好.", "ttft_ms": 2, "latency_ms": 10}
{"step": "broken", "fail": "out of memory"}
{"step": "slow", "output": "a b c d e f g h i j k l m n o p q r s t", "ttft_ms": 50, "latency_ms": 600000}
"#;

struct Served {
    child: Child,
    address: SocketAddr,
    stdout: BufReader<std::process::ChildStdout>,
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A response's status, head in lower case, and body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|_| panic!("JSON: {}", self.body))
    }

    fn error(&self) -> Value {
        let mut error = self.json();
        for member in ["message", "type", "param", "code"] {
            assert!(error["error"].get(member).is_some(), "{member}: {error}");
        }
        error["error"].take()
    }

    /// The objects of a stream, which ends with `[DONE]`.
    fn events(&self) -> Vec<Value> {
        let mut data: Vec<&str> = (self.body.lines())
            .filter_map(|line| line.strip_prefix("data: "))
            .collect();
        assert_eq!(data.pop(), Some("[DONE]"), "{}", self.body);
        data.into_iter()
            .map(|data| serde_json::from_str(data).unwrap())
            .collect()
    }
}

/// The text of a choice in a stream's chunks.
fn text_of(events: &[Value], choice: usize) -> String {
    let choices = events.iter().filter_map(|event| event["choices"].get(0));
    choices
        .filter(|found| found["index"] == choice)
        .filter_map(|found| {
            found["delta"]["content"]
                .as_str()
                .or(found["text"].as_str())
        })
        .collect()
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

impl Served {
    fn start(workspace: &Workspace, variables: &[(&str, &str)], arguments: &[&str]) -> Self {
        let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_flowbench"))
            .current_dir(workspace.path())
            .env_clear()
            .envs([
                ("HF_HUB_OFFLINE", "1"),
                ("QUIET", "1"),
                ("SERVE_ADDR", "127.0.0.1:0"),
            ])
            .envs(variables.iter().copied())
            .arg("serve")
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        let url = line
            .strip_prefix("[SERVE] url=http://")
            .unwrap_or_else(|| panic!("{line:?}"));
        let address = url.split('/').next().unwrap().parse().unwrap();
        Self {
            child,
            address,
            stdout,
        }
    }

    fn scripted(arguments: &[&str]) -> Self {
        let workspace = Workspace::new();
        workspace.write("answers.jsonl", SCRIPT);
        let variables = [("MODE", "scripted"), ("SCRIPT", "answers.jsonl")];
        Self::start(&workspace, &variables, arguments)
    }

    fn tiny(variables: &[(&str, &str)]) -> Self {
        let workspace = Workspace::new();
        tiny_model::write(&workspace.file("tiny.gguf"));
        let mut all = vec![
            ("MODEL", "tiny.gguf"),
            ("DEVICE", "cpu"),
            ("KV_CACHE_MB", "8"),
        ];
        all.extend(variables);
        Self::start(&workspace, &all, &[])
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    /// Sends bytes as they are, and reads to the end of the connection.
    fn raw(&self, request: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(request).unwrap();
        let mut bytes = Vec::new();
        // A server that refuses a body may reset the connection after its answer.
        let _ = stream.read_to_end(&mut bytes);
        parse(&bytes)
    }

    fn request(&self, method: &str, path: &str, headers: &str, body: &str) -> Answer {
        self.raw(&bytes_of(method, path, headers, body))
    }

    fn get(&self, path: &str) -> Answer {
        self.request("GET", path, "", "")
    }

    fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, JSON, &body.to_string())
    }

    fn chat(&self, body: &Value) -> Answer {
        self.post("/v1/chat/completions", body)
    }

    fn metric(&self, name: &str) -> u64 {
        let text = self.get("/metrics").body;
        assert!(text.ends_with("# EOF\n"), "{text}");
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(&format!("{name} ")));
        value
            .unwrap_or_else(|| panic!("{name} in {text}"))
            .parse()
            .unwrap()
    }

    /// Waits until the server is as idle as a new one. The limit is only there so that a leak fails the test.
    fn settle(&self) -> [u64; 3] {
        let read = || {
            [
                "flowbench_sequences",
                "flowbench_kv_pages_held",
                "flowbench_queue_places_taken",
            ]
            .map(|name| self.metric(name))
        };
        for _ in 0..600 {
            // The connection that asks is one.
            if read() == [0; 3] && self.metric("flowbench_connections") == 1 {
                break;
            }
            thread::sleep(Duration::from_millis(50));
        }
        read()
    }
}

const JSON: &str = "Content-Type: application/json\r\n";

fn bytes_of(method: &str, path: &str, headers: &str, body: &str) -> Vec<u8> {
    let host = if headers.contains("Host:") {
        ""
    } else {
        "Host: localhost\r\n"
    };
    format!(
        "{method} {path} HTTP/1.1\r\n{host}Connection: close\r\n{headers}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
    let (head, rest) = text
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("a head: {text:?}"));
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    let head = head.to_ascii_lowercase();
    let body = match head.contains("transfer-encoding: chunked") {
        false => rest.to_owned(),
        true => unchunked(rest),
    };
    Answer { status, head, body }
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, after)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).expect("a size");
        body.push_str(&after[..size]);
        rest = &after[size + 2..];
        if size == 0 {
            break;
        }
    }
    body
}

fn hi(model: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": "Hi"}]})
}

fn with(model: &str, members: Value) -> Value {
    let mut body = hi(model);
    for (name, value) in members.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

#[test]
fn a_recorded_answer_whole_and_streamed() {
    let server = Served::scripted(&["--alias", "gpt-4o,other"]);
    let whole = server.chat(&hi("gpt-4o")).json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["model"], "gpt-4o");
    assert_eq!(content(&whole), "One two three.\n\nSTOP here, größer 你好.");
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    assert_eq!(whole["usage"]["completion_tokens"], 7);

    let stream = with(
        "none",
        json!({"stream": true, "stream_options": {"include_usage": true}}),
    );
    let answer = server.chat(&stream);
    assert!(
        answer.head.contains("content-type: text/event-stream"),
        "{}",
        answer.head
    );
    let events = answer.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(text_of(&events, 0), content(&whole));
    let (usage, rest) = events.split_last().unwrap();
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"], whole["usage"]);
    assert_eq!(rest.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert!(rest.iter().all(|chunk| chunk["usage"].is_null()));
    // Without being asked for, there is no usage.
    let plain = server.chat(&with("none", json!({"stream": true}))).events();
    assert!(plain.iter().all(|chunk| chunk.get("usage").is_none()));

    let stopped = server
        .chat(&with("none", json!({"stop": ["\n\nSTOP", "zzz"]})))
        .json();
    assert_eq!(content(&stopped), "One two three.");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let streamed = with("none", json!({"stop": "STOP", "stream": true}));
    assert_eq!(
        text_of(&server.chat(&streamed).events(), 0),
        "One two three.\n\n"
    );
    let cut = server
        .chat(&with("none", json!({"max_tokens": 2, "n": 2})))
        .json();
    assert_eq!(cut["choices"][1]["message"]["content"], "One two");
    assert_eq!(cut["choices"][1]["finish_reason"], "length");

    let plain = server.post(
        "/v1/completions",
        &json!({"model": "none", "prompt": "x", "max_tokens": 1}),
    );
    assert_eq!(plain.json()["choices"][0]["text"], "One");
    assert_eq!(plain.json()["object"], "text_completion");
    let models = server.get("/v1/models").json();
    let names: Vec<&Value> = models["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| &one["id"])
        .collect();
    assert_eq!(names, ["none", "gpt-4o", "other"]);
    assert_eq!(server.get("/v1/models/other").json()["id"], "other");
    assert_eq!(server.get("/health").json(), json!({"status": "ok"}));
    assert_eq!(server.settle(), [0; 3]);
}

#[test]
fn errors_are_openais_objects() {
    let server = Served::scripted(&["--max-body-mb", "1"]);
    for (members, param, code) in [
        (json!({"n": 0}), "n", "integer_below_min_value"),
        (json!({"n": 1_000_000_000}), "n", "integer_above_max_value"),
        (
            json!({"temperature": -1}),
            "temperature",
            "decimal_below_min_value",
        ),
        (
            json!({"logprobs": true}),
            "logprobs",
            "unsupported_parameter",
        ),
        (json!({"tools": [{}]}), "tools", "unsupported_parameter"),
        (json!({"min_p": 0.2}), "min_p", "unsupported_parameter"),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            "unsupported_parameter",
        ),
        (
            json!({"no_such_thing": 1}),
            "no_such_thing",
            "unknown_parameter",
        ),
        (
            json!({"messages": [{"role": "wizard", "content": "x"}]}),
            "messages[0].role",
            "invalid_value",
        ),
        (
            json!({"messages": [{"role": "tool", "content": "x"}]}),
            "messages[0].role",
            "unsupported_parameter",
        ),
    ] {
        let answer = server.chat(&with("none", members));
        let error = answer.error();
        assert_eq!(answer.status, 400, "{error}");
        assert_eq!(error["type"], "invalid_request_error");
        assert_eq!(error["param"], param);
        assert_eq!(error["code"], code);
    }
    let body = hi("none").to_string();
    let large = format!("{{\"model\": \"{}\"}}", "x".repeat(1 << 20));
    let path = "/v1/chat/completions";
    for (answer, status, code) in [
        (server.chat(&hi("gpt-9")), 404, json!("model_not_found")),
        (
            server.request("POST", path, JSON, "{\"model\": "),
            400,
            json!(null),
        ),
        (
            server.request("POST", path, JSON, &large),
            413,
            json!("request_too_large"),
        ),
        (
            server.request("POST", path, "Content-Type: text/plain\r\n", &body),
            415,
            json!("unsupported_content_type"),
        ),
        (
            server.request(
                "POST",
                path,
                &format!("{JSON}Host: evil.example\r\n"),
                &body,
            ),
            403,
            json!("host_not_allowed"),
        ),
        (
            server.request("GET", "/health", "Host: evil.example:80\r\n", ""),
            403,
            json!("host_not_allowed"),
        ),
        (server.get(path), 405, json!("method_not_supported")),
        (server.get("/v1/embeddings"), 404, json!("unknown_url")),
        (
            server.get("/v1/models/gpt-9"),
            404,
            json!("model_not_found"),
        ),
        (
            server.request(
                "POST",
                path,
                &format!("{JSON}x-flowbench-step: broken\r\n"),
                &body,
            ),
            500,
            json!(null),
        ),
    ] {
        let error = answer.error();
        assert_eq!(answer.status, status, "{error}");
        assert_eq!(error["code"], code);
    }
    // A chunked body has no length to be refused by.
    let chunk = "x".repeat(1 << 16);
    let mut chunked = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n"
    );
    (0..17).for_each(|_| chunked.push_str(&format!("10000\r\n{chunk}\r\n")));
    chunked.push_str("0\r\n\r\n");
    assert_eq!(server.raw(chunked.as_bytes()).status, 413);
    // A failure inside of a stream is an event, and the stream ends.
    let body = with("none", json!({"stream": true})).to_string();
    let broken = server.request(
        "POST",
        path,
        &format!("{JSON}x-flowbench-step: broken\r\n"),
        &body,
    );
    assert_eq!(broken.status, 200);
    let last = broken.body.lines().rfind(|line| !line.is_empty()).unwrap();
    let last: Value = serde_json::from_str(last.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!(last["error"]["message"], "out of memory");
    // Half a request, and no HTTP at all, disturb nobody.
    let mut half = server.connect();
    half.write_all(b"POST /v1/chat/completions HTTP/1.1\r\nHost: lo")
        .unwrap();
    assert_eq!(server.raw(b"\x16\x03\x01 not HTTP\r\n\r\n").status, 400);
    assert_eq!(server.chat(&hi("none")).status, 200);
    drop(half);
    assert_eq!(server.settle(), [0; 3]);
}

#[test]
fn a_key_is_asked_for_if_there_is_one() {
    let server = Served::scripted(&["--api-key", "secret"]);
    let ask = |headers: &str| {
        let headers = format!("{JSON}{headers}");
        server.request(
            "POST",
            "/v1/chat/completions",
            &headers,
            &hi("none").to_string(),
        )
    };
    for headers in ["", "Authorization: Bearer other\r\n"] {
        let refused = ask(headers);
        assert_eq!(
            (refused.status, refused.error()["code"].clone()),
            (401, json!("invalid_api_key"))
        );
    }
    assert_eq!(ask("Authorization: Bearer secret\r\n").status, 200);
    assert_eq!(server.get("/v1/models").status, 401);
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn a_full_queue_refuses_and_a_client_that_leaves_makes_room() {
    let server = Served::scripted(&["--concurrency", "1", "--max-queue", "1"]);
    let slow = |stream: bool| {
        let body = with("none", json!({"stream": stream})).to_string();
        let headers = format!("{JSON}x-flowbench-step: slow\r\n");
        let mut client = server.connect();
        client
            .write_all(&bytes_of("POST", "/v1/chat/completions", &headers, &body))
            .unwrap();
        client
    };
    // One that streams and one that waits for the whole.
    let clients = [slow(true), slow(false)];
    while server.metric("flowbench_queue_places_taken") < 2 {
        thread::sleep(Duration::from_millis(5));
    }
    let refused = server.chat(&hi("none"));
    assert_eq!(refused.status, 429);
    assert!(refused.head.contains("retry-after: 1"), "{}", refused.head);
    assert_eq!(refused.error()["code"], "rate_limit_exceeded");
    drop(clients);
    assert_eq!(server.settle(), [0; 3]);
    assert_eq!(server.chat(&hi("none")).status, 200);
    assert_eq!(
        server.metric("flowbench_choices_total{outcome=\"Cancelled\"}"),
        2
    );
}

/// An interrupt ends the server in order, although a request is in flight.
#[test]
#[cfg(target_os = "linux")]
fn an_interrupt_ends_it_in_order() {
    let mut server = Served::scripted(&[]);
    let mut idle = server.connect();
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    let mut rest = String::new();
    server.stdout.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "");
    assert_eq!(idle.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn settings_that_do_not_fit_are_refused() {
    let workspace = Workspace::new();
    for (arguments, message) in [
        (&["--mode", "both"][..], "MODE is both"),
        (&["--mode", "scripted"], "SCRIPT is not set"),
        (&["--addr", "0.0.0.0:0"], "no key is set"),
        (&["--addr", "nowhere"], "--addr"),
        (&["--script", "x"], "SCRIPT is set"),
    ] {
        let arguments = [&["serve"], arguments].concat();
        let printed = crate::common::run(&mut workspace.flowbench(&arguments));
        assert_eq!(printed.code, 2, "{}", printed.err);
        assert!(printed.err.contains(message), "{}", printed.err);
    }
}

/// The tiny model's answers are random bytes: characters of several tokens, and bytes that are none.
#[test]
fn the_tiny_model_streams_what_it_answers_whole() {
    let server = Served::tiny(&[]);
    for seed in 0..8 {
        let sampled =
            json!({"seed": seed, "temperature": 1.5, "max_tokens": 60, "n": 3, "ignore_eos": true});
        let whole = server.chat(&with("tiny", sampled.clone())).json();
        let mut streamed = with("tiny.gguf", sampled);
        streamed["stream"] = json!(true);
        let events = server.chat(&streamed).events();
        for choice in 0..3 {
            let text = whole["choices"][choice]["message"]["content"]
                .as_str()
                .unwrap();
            assert_eq!(text_of(&events, choice), text);
            // Each choice is what its seed gives alone.
            let alone = json!({"seed": seed + choice, "temperature": 1.5, "max_tokens": 60, "ignore_eos": true});
            let alone = server.chat(&with("tiny", alone)).json();
            assert_eq!(content(&alone), text);
        }
        assert_eq!(whole["usage"]["completion_tokens"], 180);
        // A stop string that spans tokens: two characters of the answer.
        let text = content(&whole);
        let letters: Vec<char> = text.chars().collect();
        let pair: String = letters[10..12].iter().collect();
        let stopped = json!({"seed": seed, "temperature": 1.5, "max_tokens": 60, "ignore_eos": true, "stop": pair});
        let stopped = server.chat(&with("tiny", stopped)).json();
        assert_eq!(content(&stopped), &text[..text.find(&pair).unwrap()]);
        assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
        assert!(stopped["usage"]["completion_tokens"].as_u64().unwrap() < 60);
    }
    let long = with(
        "tiny",
        json!({"messages": [{"role": "user", "content": "x".repeat(5000)}]}),
    );
    let long = server.chat(&long);
    assert_eq!(
        (long.status, long.error()["code"].clone()),
        (400, json!("context_length_exceeded"))
    );
    let plain = json!({"model": "tiny", "prompt": "Once", "temperature": 0, "max_tokens": 5});
    let plain = server.post("/v1/completions", &plain).json();
    assert_eq!(plain["usage"]["prompt_tokens"], 4);
    assert_eq!(server.settle(), [0; 3]);
}

/// A template's step and a request with the same conversation, seed and limits have the same answer.
#[test]
fn the_endpoint_answers_as_a_template_does() {
    let workspace = Workspace::new();
    tiny_model::write(&workspace.file("tiny.gguf"));
    workspace.write(
        "templates/one.toml",
        "schema = 1\nname = \"one\"\nsuite = \"chain.suite.jsonl\"\nsystem = \"Be brief.\"\n\n[[step]]\nid = \"ask\"\n\
         prompt = \"{{ row.task }}\"\nmax_tokens = 40\ntemperature = 1.2\ntop_p = 0.9\ntop_k = 50\n",
    );
    let settings = [
        ("MODEL", "tiny.gguf"),
        ("DEVICE", "cpu"),
        ("KV_CACHE_MB", "8"),
        ("SEED", "7"),
    ];
    let mut command = workspace.flowbench(&["run"]);
    command
        .envs(settings)
        .env("TEMPLATE", "one")
        .env("MODE", "reuse");
    let printed = crate::common::run(&mut command);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let server = Served::start(&workspace, &settings, &[]);
    let steps = workspace.steps();
    assert_eq!(steps.len(), 3);
    for step in steps {
        let flow = step["flow"].as_u64().unwrap();
        // As a run derives the seed of a step.
        let seed = flowbench::hash::sha256(format!("7/{flow}/ask").as_bytes());
        let seed = u64::from_str_radix(&seed[..16], 16).unwrap();
        let tasks = [
            "Look for an off-by-one.",
            "Look at the names.",
            "Look for swallowed errors.",
        ];
        let answer = server.chat(&json!({
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": tasks[flow as usize - 1]},
            ],
            "temperature": 1.2, "top_p": 0.9, "top_k": 50, "seed": seed, "max_completion_tokens": 40,
        }));
        assert_eq!(content(&answer.json()), step["output"].as_str().unwrap());
    }
}

/// 200 clients at once, of whom every tenth leaves in the middle: nothing is left behind.
#[test]
fn clients_that_leave_leave_nothing_behind() {
    let server = Served::tiny(&[("CONCURRENCY", "32"), ("SPECULATE", "0")]);
    let ask = |index: usize, tokens: usize, stream: bool| {
        with(
            "tiny",
            json!({
                "messages": [{"role": "user", "content": format!("Question {}", index % 20)}],
                "seed": index, "max_tokens": tokens, "ignore_eos": true, "stream": stream,
            }),
        )
    };
    // What is loaded once is loaded before the count.
    assert_eq!(server.chat(&ask(0, 8, false)).status, 200);
    assert_eq!(server.settle(), [0; 3]);
    let levels = ["flowbench_threads", "flowbench_open_files"];
    let before = levels.map(|name| server.metric(name));
    thread::scope(|scope| {
        for index in 0..200 {
            let server = &server;
            scope.spawn(move || {
                let stream = index % 2 == 0;
                if index % 10 >= 2 || index >= 100 {
                    let answer = server.chat(&ask(index, 24, stream));
                    assert_eq!(answer.status, 200);
                    return;
                }
                // Leaves after a time that differs from client to client, or after the first bytes.
                let body = ask(index, 2000, stream).to_string();
                let mut client = server.connect();
                client
                    .write_all(&bytes_of("POST", "/v1/chat/completions", JSON, &body))
                    .unwrap();
                match stream {
                    true => {
                        let _ = client.read(&mut [0; 64]);
                    }
                    false => thread::sleep(Duration::from_millis(index as u64)),
                }
            });
        }
    });
    assert_eq!(server.settle(), [0; 3]);
    // Some may have left before their request was read, or after its last token.
    let cancelled = server.metric("flowbench_choices_total{outcome=\"Cancelled\"}");
    assert!((1..=20).contains(&cancelled), "{cancelled}");
    assert_eq!(levels.map(|name| server.metric(name)), before);
}

/// A client that stops reading holds nobody up.
#[test]
fn a_client_that_does_not_read_stops_nobody() {
    let server = Served::tiny(&[]);
    let mut lazy: Vec<TcpStream> = Vec::new();
    for seed in 0..4 {
        let body = with(
            "tiny",
            json!({"seed": seed, "max_tokens": 3000, "ignore_eos": true, "stream": true}),
        );
        let mut client = server.connect();
        client
            .write_all(&bytes_of(
                "POST",
                "/v1/chat/completions",
                JSON,
                &body.to_string(),
            ))
            .unwrap();
        lazy.push(client);
    }
    for seed in 0..5 {
        let answer = server.chat(&with(
            "tiny",
            json!({"seed": seed, "max_tokens": 20, "ignore_eos": true}),
        ));
        assert_eq!(answer.json()["usage"]["completion_tokens"], 20);
    }
    // They have their answers whole, whenever they read.
    for mut client in lazy {
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        assert!(!text_of(&parse(&bytes).events(), 0).is_empty());
    }
    assert_eq!(server.settle(), [0; 3]);
}
