//! `flowbench run --stats-addr`, asked while it runs. No test asserts a time.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::common::{Workspace, run};

/// A run that goes on for as long as a test needs it.
pub(crate) struct Running {
    child: Child,
    address: SocketAddr,
    // The program must be able to write to it.
    _stderr: BufReader<std::process::ChildStderr>,
}

impl Running {
    fn start(workspace: &Workspace, flows: &str) -> Self {
        workspace.write(
            "templates/chain.script.jsonl",
            "{\"output\": \"a b\", \"ttft_ms\": 5, \"latency_ms\": 10}\n",
        );
        Self::of(&mut workspace.child(&[("NUM_FLOWS", flows), ("STATS_ADDR", "127.0.0.1:0")]))
    }

    pub(crate) fn of(command: &mut std::process::Command) -> Self {
        let mut child = (command.stdout(Stdio::null()).stderr(Stdio::piped()))
            .spawn()
            .expect("starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert_ne!(stderr.read_line(&mut line).expect("UTF-8"), 0, "it ended");
            if let Some(url) = line
                .trim()
                .strip_prefix("[PROGRESS] Live figures at http://")
            {
                break url.trim_end_matches('/').parse().expect("an address");
            }
        };
        Self {
            child,
            address,
            _stderr: stderr,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).expect("listens");
        let patience = Some(Duration::from_secs(60));
        stream.set_read_timeout(patience).expect("can be set");
        stream
    }

    /// The status line and the body that come for these bytes.
    fn send(&self, request: &[u8]) -> (String, String) {
        let mut stream = self.connect();
        stream.write_all(request).expect("is read");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("UTF-8");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        let status = head.lines().next().unwrap_or_default().to_owned();
        (status, body.to_owned())
    }

    pub(crate) fn get(&self, path: &str) -> String {
        let (status, body) =
            self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes());
        assert_eq!(status, "HTTP/1.1 200 OK", "{path}");
        body
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The samples of Prometheus' text, by name with labels. Each must have its type said before.
fn samples(text: &str) -> HashMap<String, f64> {
    let mut types = HashMap::new();
    let mut samples = HashMap::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("name and type");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name, kind).is_none(), "twice: {line}");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').expect("name and value");
            let bare = name.split('{').next().unwrap_or_default();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .filter_map(|suffix| bare.strip_suffix(suffix))
                .find(|family| types.get(family) == Some(&"histogram"))
                .unwrap_or(bare);
            let kind = types
                .get(family)
                .unwrap_or_else(|| panic!("no type: {line}"));
            assert_eq!(*kind == "counter", bare.ends_with("_total"), "{line}");
            assert!(bare.starts_with("flowbench_"), "{line}");
            let value = value.parse().expect("a number");
            assert!(samples.insert(name.to_owned(), value).is_none(), "{line}");
        }
    }
    samples
}

#[test]
fn all_addresses_answer_while_it_runs() {
    let workspace = Workspace::new();
    let running = Running::start(&workspace, "1000");
    let live = loop {
        let live: serde_json::Value =
            serde_json::from_str(&running.get("/live.json")).expect("JSON");
        if live["live"]["flows_ended"].as_u64() >= Some(2) {
            break live;
        }
    };
    assert_eq!(live["live"]["flows"], 1000);
    assert_eq!(live["live"]["flows_failed"], 0);
    assert!(live["live"]["generated_tokens"].as_u64() >= Some(12));
    assert!(live["live"]["ttft"]["count"].as_u64() >= Some(6));
    assert!(live["resident_bytes"].as_u64() > Some(1 << 20));
    assert!(
        live["stages"]
            .as_array()
            .is_some_and(|stages| !stages.is_empty())
    );

    let table = running.get("/stats");
    assert!(
        table.contains("all times are wall-clock seconds"),
        "{table}"
    );
    assert!(
        table.lines().any(|line| line.starts_with("step ")),
        "{table}"
    );
    assert!(running.get("/").contains("<title>flowbench, live</title>"));

    let samples = samples(&running.get("/metrics"));
    let count = samples["flowbench_step_seconds_count"];
    assert!(count >= 6.0);
    assert_eq!(samples["flowbench_step_seconds_bucket{le=\"+Inf\"}"], count);
    assert!(samples["flowbench_ttft_seconds_sum"] > 0.0);
    assert!(samples["flowbench_stage_seconds_total{stage=\"decode\"}"] > 0.0);
}

#[test]
fn nothing_can_be_changed_and_nothing_else_is_there() {
    let workspace = Workspace::new();
    let running = Running::start(&workspace, "1000");
    for (request, status) in [
        ("POST /stats HTTP/1.1\r\n\r\n", "405"),
        ("DELETE / HTTP/1.1\r\n\r\n", "405"),
        (
            "GET /../etc/passwd HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "404",
        ),
        ("GET /stats HTTP/1.1\r\n\r\n", "400"),
        ("GET /stats HTTP/1.0\r\n\r\n", "200"),
        (
            "GET http://elsewhere/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "403",
        ),
        (
            "GET http://localhost/stats HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "200",
        ),
        ("\u{16}\u{3}\u{1}", "400"),
        ("GET /stats HTTP/1.1\r\nHost: evil.example\r\n\r\n", "403"),
        ("GET /stats HTTP/1.1\r\nHost: localhost:1\r\n\r\n", "200"),
    ] {
        let (answer, _) = running.send(request.as_bytes());
        assert!(answer.contains(status), "{request:?}: {answer}");
    }
    let (status, body) = running.send(b"HEAD / HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", ""));
}

#[test]
fn many_slow_and_broken_clients_keep_nobody_from_an_answer() {
    let workspace = Workspace::new();
    let mut running = Running::start(&workspace, "100");
    // Held open, with half a request, with garbage, with nothing, gone at once.
    let held: Vec<TcpStream> = (0..200)
        .map(|number| {
            let mut stream = running.connect();
            let sent: &[u8] = match number % 4 {
                0 => b"GET /stats HTT",
                1 => b"\x00\xff\xfe\x00",
                2 => b"",
                _ => b"GET / HTTP/1.1\r\nHost: ",
            };
            let _ = stream.write_all(sent);
            if number % 20 == 0 {
                let _ = stream.shutdown(Shutdown::Both);
            }
            stream
        })
        .collect();
    // Clients that ask for much and take nothing.
    let greedy: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = running.connect();
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
            stream
        })
        .collect();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..5 {
                    assert!(running.get("/stats").contains("ncall"));
                }
            });
        }
    });
    drop((held, greedy));
    assert!(running.child.wait().expect("ends").success());
    assert_eq!(workspace.record()["totals"]["workflows_done"], 100);
}

/// Clients that open all the connections they can leave the run the files that it needs.
#[cfg(unix)]
#[test]
fn clients_cannot_take_the_files_of_a_run() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"ttft_ms\": 5, \"latency_ms\": 40}\n",
    );
    let child = workspace.child(&[("NUM_FLOWS", "12"), ("STATS_ADDR", "127.0.0.1:0")]);
    let mut command = std::process::Command::new("sh");
    // Both limits: the soft one cannot be raised.
    command
        .args(["-c", "ulimit -n 64 && exec \"$0\" run"])
        .arg(child.get_program())
        .current_dir(workspace.path())
        .env_clear();
    for (name, value) in child.get_envs() {
        command.env(name, value.expect("set"));
    }
    let mut running = Running::of(&mut command);
    let held: Vec<TcpStream> = (0..200)
        .filter_map(|_| TcpStream::connect(running.address).ok())
        .map(|mut stream| {
            let _ = stream.write_all(b"GET /stats HTTP/1.1\r\nHost: ");
            stream
        })
        .collect();
    assert!(held.len() > 64, "{}", held.len());
    assert!(running.child.wait().expect("ends").success());
    assert_eq!(workspace.record()["totals"]["workflows_done"], 12);
}

#[cfg(target_os = "linux")]
#[test]
fn the_soft_limit_of_open_files_is_raised_to_the_hard_one() {
    let workspace = Workspace::new();
    workspace.write(
        "templates/chain.script.jsonl",
        "{\"output\": \"a b\", \"latency_ms\": 10}\n",
    );
    let child = workspace.child(&[("NUM_FLOWS", "1000"), ("STATS_ADDR", "127.0.0.1:0")]);
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", "ulimit -Sn 100 && exec \"$0\" run"])
        .arg(child.get_program())
        .current_dir(workspace.path())
        .env_clear();
    for (name, value) in child.get_envs() {
        command.env(name, value.expect("set"));
    }
    let running = Running::of(&mut command);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", running.child.id()));
    let limits = limits.expect("it runs");
    let line = limits
        .lines()
        .find(|line| line.starts_with("Max open files"));
    let words: Vec<&str> = line.expect("a limit").split_whitespace().collect();
    assert_eq!(words[3], words[4], "{words:?}");
}

#[test]
fn an_address_that_cannot_be_had_is_told_before_anything_runs() {
    let workspace = Workspace::new();
    let running = Running::start(&workspace, "1000");
    let taken = running.address.to_string();
    let other = Workspace::new();
    let printed = run(other.scripted().env("STATS_ADDR", &taken));
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(printed.err.contains("STATS_ADDR"), "{}", printed.err);
    let printed = run(other.scripted().env("STATS_ADDR", "somewhere"));
    assert_eq!(printed.code, 2, "{}", printed.err);
}
