//! `MODE=remote` against a real server: llama-cpp-python's, with the default model. It runs where
//! `FLOWBENCH_LLAMA_PYTHON` names a Python that has `llama-cpp-python[server]`.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{Workspace, run};
use serde_json::{Value, json};

/// One step whose prompt is known.
const COUNT: &str = r#"schema = 1
name = "count"
description = "One step"
suite = "count.suite.jsonl"
system = "Answer in a few words."

[[step]]
id = "answer"
prompt = "{{ row.task }}"
max_tokens = 4
"#;

/// The server's process, which is ended with the test.
struct Server {
    process: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Server {
    fn start(python: &Path, model: &Path, key: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = free.local_addr().expect("bound").port();
        drop(free);
        let process = Command::new(python)
            .args(["-m", "llama_cpp.server", "--model"])
            .arg(model)
            .args(["--port", &port.to_string(), "--api_key", key])
            .args(["--model_alias", "smol", "--n_ctx", "2048"])
            // Without it, a request that comes breaks off the one before.
            .args(["--interrupt_requests", "false"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("the Python that was named starts");
        let mut server = Self { process, port };
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            let ended = server.process.try_wait().expect("known");
            assert!(ended.is_none(), "the server did not start: {ended:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
        server
    }

    /// What the server counts of an answer in one piece.
    fn usage(&self, key: &str, task: &str) -> Value {
        let body = json!({
            "model": "smol",
            "max_tokens": 1,
            "messages": [
                {"role": "system", "content": "Answer in a few words."},
                {"role": "user", "content": task},
            ],
        })
        .to_string();
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        write!(
            stream,
            "POST /v1/chat/completions HTTP/1.0\r\nContent-Type: application/json\r\n\
             Authorization: Bearer {key}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
        .expect("writable");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("UTF-8");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let answer: Value = serde_json::from_str(body).expect("JSON");
        answer["usage"].clone()
    }

    fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}/v1", self.port)
    }
}

/// Python and model; `None` (with a note) where either is not on this machine.
fn tools() -> Option<(PathBuf, PathBuf)> {
    let Some(python) = std::env::var_os("FLOWBENCH_LLAMA_PYTHON") else {
        let note = "skipped: FLOWBENCH_LLAMA_PYTHON names no Python with llama-cpp-python[server]";
        let _ = writeln!(std::io::stderr(), "{note}");
        return None;
    };
    Some((PathBuf::from(python), crate::common::model()?))
}

fn sums(steps: &[Value], name: &str) -> Vec<u64> {
    steps
        .iter()
        .filter_map(|step| step[name].as_u64())
        .collect()
}

#[test]
fn the_same_flows_through_a_real_server() {
    let Some((python, model)) = tools() else {
        return;
    };
    let server = Server::start(&python, &model, "canary-key");
    let workspace = Workspace::new();
    let remote = |out: &str| {
        let mut command = workspace.flowbench(&["run"]);
        command
            .envs([
                ("MODE", "remote"),
                ("TEMPLATE", "chain"),
                ("NUM_FLOWS", "3"),
            ])
            .env("ENDPOINT", server.endpoint())
            .env("TOKENIZER", &model)
            .env("ENDPOINT_EXTRA", r#"{"repeat_penalty": 1.0}"#)
            .env("OUT", out);
        command
    };
    let steps = |out: &str| -> Vec<Value> {
        let folder = workspace.runs(out).remove(0);
        let text = std::fs::read_to_string(folder.join("steps.jsonl")).expect("readable");
        let lines = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"));
        let mut steps: Vec<Value> = lines.collect();
        steps.sort_by_key(|step| step["flow"].as_u64());
        steps
    };

    let printed = run(&mut remote("refused"));
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(printed.err.contains("Invalid API key"), "{}", printed.err);

    let printed = run(remote("chat").env("API_KEY", "canary-key"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(!printed.out.contains("canary") && !printed.err.contains("canary"));
    let chat = steps("chat");
    assert_eq!(chat.len(), 9);
    for step in &chat {
        assert!(step["ttft_ms"].as_f64() > Some(0.0), "{step}");
        assert!(step["decode_tokens"].as_u64() <= Some(12), "{step}");
        assert!(!step["output"].as_str().unwrap_or_default().is_empty());
        assert_eq!(step["attempts"], 1);
    }

    // The local tokenizer counts the tokens that the server counts. (It sends no usage with a stream,
    // but with an answer in one piece.)
    workspace.write("templates/count.toml", COUNT);
    workspace.write("templates/count.suite.jsonl", crate::common::SUITE);
    for (out, api) in [("count-chat", "chat"), ("count-completions", "completions")] {
        let printed = run(remote(out)
            .env("API_KEY", "canary-key")
            .env("TEMPLATE", "count")
            .env("ENDPOINT_API", api));
        assert_eq!(printed.code, 0, "{}", printed.err);
        let counted = steps(out);
        assert_eq!(counted.len(), 3);
        for (step, row) in counted.iter().zip(crate::common::SUITE.lines()) {
            let row: Value = serde_json::from_str(row).expect("JSON");
            let usage = server.usage("canary-key", row["task"].as_str().expect("a task"));
            assert_eq!(
                step["prompt_tokens"], usage["prompt_tokens"],
                "{api}: {step}"
            );
        }
    }

    let printed = run(workspace
        .flowbench(&["run"])
        .envs([("TEMPLATE", "chain"), ("NUM_FLOWS", "3"), ("OUT", "local")])
        .env("MODEL", &model));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let local = steps("local");
    // The first steps' prompts are the same; those after hold what each engine said before.
    let first = |steps: &[Value]| -> Vec<Value> {
        let planners = steps.iter().filter(|step| step["step"] == "planner");
        planners.cloned().collect()
    };
    assert_eq!(
        sums(&first(&chat), "prompt_tokens"),
        sums(&first(&local), "prompt_tokens")
    );
}
