//! `MODE=remote`, end to end, against a server that does as it is told.

use std::net::TcpListener;
use std::time::Duration;

use crate::common::server::{
    Act, Server, USAGE, WORDS, answer, chunk, end, event, finish, head, json_answer, raw, word,
};
use crate::common::{Printed, Workspace, run};
use assert_cmd::Command;
use serde_json::{Value, json};

/// A run of one flow (three steps) on the server; waits between attempts are as short as can be.
fn remote(workspace: &Workspace, server: &Server) -> Command {
    at(workspace, &server.endpoint())
}

fn at(workspace: &Workspace, endpoint: &str) -> Command {
    let mut command = workspace.flowbench(&["run"]);
    command
        .env("MODE", "remote")
        .env("TEMPLATE", "chain")
        .envs([
            ("NUM_FLOWS", "1"),
            ("ENDPOINT", endpoint),
            ("RETRY_DELAY", "0.001"),
            ("QUIET", "1"),
        ]);
    command
}

/// The run's counts of what went over the wire.
fn traffic(workspace: &Workspace) -> Value {
    workspace.record()["totals"]["remote"].clone()
}

/// The first answers, then sound ones; the run must come to its end in spite of them. Returns its
/// counts.
#[track_caller]
fn survives(answers: Vec<Vec<Act>>, settings: &[(&str, &str)]) -> Value {
    let server = Server::first(answers);
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).envs(settings.iter().copied()));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let steps = workspace.steps();
    assert_eq!(steps.len(), 3);
    for step in &steps {
        assert_eq!(step["output"], WORDS.concat());
    }
    let counts = traffic(&workspace);
    // What was done again is on the step that it was done for, and on the last line.
    assert_eq!(
        steps[0]["attempts"].as_u64(),
        counts["retries"].as_u64().map(|n| n + 1)
    );
    assert_eq!(steps[1]["attempts"], 1);
    let line = printed
        .out
        .lines()
        .find(|line| line.starts_with("[REMOTE] "));
    let retries = format!(" retries={} ", counts["retries"]);
    assert!(line.expect("a line").contains(&retries), "{}", printed.out);
    counts
}

/// Such an answer fails the run's flow, and what is said of it holds these words.
#[track_caller]
fn fails(acts: Vec<Act>, words: &[&str]) -> (Printed, Value) {
    let server = Server::start(move |request| (request.method == "POST").then(|| acts.clone()));
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).env("MAX_ATTEMPTS", "2"));
    assert_eq!(printed.code, 4, "{}", printed.err);
    assert!(!printed.err.contains("panicked"), "{}", printed.err);
    let error = workspace.record()["workflows"][0]["error"].to_string();
    for word in words {
        assert!(
            printed.err.contains(word),
            "{word:?} is not in {}",
            printed.err
        );
        let quoted = word.replace('"', "\\\"");
        assert!(error.contains(&quoted), "{quoted:?} is not in {error}");
    }
    assert_eq!(workspace.steps(), [] as [Value; 0]);
    (printed, traffic(&workspace))
}

#[test]
fn a_stream_is_measured_and_counted_as_the_server_says() {
    let server = Server::sound();
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).env("QUIET", "0"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    // The server writes as fast as it can: whether that looks like one piece is chance.
    let text = printed.redacted(&workspace);
    let lines = text
        .lines()
        .filter(|line| !line.contains("came in one piece"));
    let lines: Vec<&str> = lines.collect();
    insta::assert_snapshot!(lines.join("\n").replace(&server.endpoint(), "[ENDPOINT]"));
    for step in workspace.steps() {
        assert_eq!(step["output"], "All is well.");
        assert_eq!(step["prompt_tokens"], USAGE.0);
        assert_eq!(step["reused_tokens"], USAGE.1);
        assert_eq!(step["prefill_tokens"], USAGE.0 - USAGE.1);
        assert_eq!(step["decode_tokens"], USAGE.2);
        assert_eq!(step["counted_by"], "usage");
        assert_eq!(step["finish"], "stop");
        assert_eq!(step["queue_ms"], Value::Null);
        // Three chunks came, whatever the tokens in them.
        assert_eq!(step["gaps_ms"].as_array().map(Vec::len), Some(2));
        assert!(step["ttft_ms"].as_f64() <= step["latency_ms"].as_f64());
    }
    let record = workspace.record();
    assert_eq!(record["engine"]["kind"], "remote");
    assert_eq!(record["engine"]["model"], "test-model");
    assert_eq!(record["engine"]["model_path"], server.endpoint());
    assert_eq!(record["settings"]["remote"]["endpoint_api"], "chat");
    assert_eq!(record["totals"]["remote"]["requests"], 3);
}

#[test]
fn what_goes_over_the_wire() {
    let server = Server::sound();
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).envs([
        ("SEED", "7"),
        ("IGNORE_EOS", "1"),
        ("ENDPOINT_EXTRA", r#"{"repeat_penalty": 1.0}"#),
    ]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let posts = server.posts();
    assert_eq!(posts.len(), 3);
    for post in &posts {
        assert_eq!(post.path, "/v1/chat/completions");
        assert_eq!(post.body["model"], "test-model");
        assert_eq!(post.body["max_tokens"], 12);
        assert_eq!(post.body["stream_options"]["include_usage"], true);
        assert_eq!(post.body["ignore_eos"], true);
        assert_eq!(post.body["repeat_penalty"], 1.0);
        assert_eq!(post.header("authorization"), None);
    }
    // What the model said before is part of the conversation.
    let verifier = posts[2].body["messages"].as_array().expect("messages");
    let roles: Vec<&str> = verifier
        .iter()
        .filter_map(|message| message["role"].as_str())
        .collect();
    assert_eq!(
        roles,
        ["system", "user", "assistant", "user", "assistant", "user"]
    );
    assert_eq!(verifier[2]["content"], "All is well.");
    let settings = &workspace.record()["settings"]["remote"];
    assert_eq!(settings["endpoint_extra"]["repeat_penalty"], 1.0);
    // One after another they share a connection, as a rule: it may come free too late for the next.
    assert!(server.connections() < 4, "{}", server.connections());
}

#[test]
fn plain_completions() {
    let server = Server::sound();
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).env("ENDPOINT_API", "completions"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let posts = server.posts();
    assert_eq!(posts[0].path, "/v1/completions");
    assert!(
        posts[1]
            .prompt()
            .contains("\n\nAssistant: All is well.\n\nUser: Carry out: All is well.\n\nAssistant:"),
        "{}",
        posts[1].prompt()
    );
}

#[test]
fn all_flows_are_in_flight_at_once() {
    // Each of the first calls is answered when all of them have come.
    let barrier = std::sync::Arc::new(std::sync::Barrier::new(8));
    let server = Server::start(move |request| {
        if request.method == "POST" && request.number < 8 {
            barrier.wait();
        }
        None
    });
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).env("NUM_FLOWS", "8"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(printed.count("[TIMING] workflow_"), 8);
    assert_eq!(traffic(&workspace)["retries"], 0);
}

#[test]
fn the_model_is_the_one_that_is_served_or_the_one_that_is_named() {
    let listing = |names: &[&str]| {
        let data: Vec<Value> = names.iter().map(|name| json!({"id": name})).collect();
        json!({"object": "list", "data": data})
    };
    let several = listing(&["alpha", "beta"]);
    let server = Server::start(move |request| {
        (request.method == "GET").then(|| vec![json_answer(200, &several)])
    });
    let workspace = Workspace::new();
    let printed = run(&mut remote(&workspace, &server));
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(
        printed.err.contains("serves 2 models: alpha, beta"),
        "{}",
        printed.err
    );
    assert!(printed.err.contains("hint: set MODEL"), "{}", printed.err);

    let printed = run(remote(&workspace, &server).env("MODEL", "beta"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(
        server
            .posts()
            .iter()
            .all(|post| post.body["model"] == "beta")
    );

    let none = listing(&[]);
    let server = Server::start(move |request| {
        (request.method == "GET").then(|| vec![json_answer(200, &none)])
    });
    let printed = run(&mut remote(&Workspace::new(), &server));
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(printed.err.contains("serves no model"), "{}", printed.err);

    // A server without a list is asked by the name that is given.
    let server = Server::start(|request| {
        (request.method == "GET").then(|| vec![json_answer(404, &json!({"detail": "Not Found"}))])
    });
    let printed = run(&mut remote(&Workspace::new(), &server));
    assert_eq!(printed.code, 3, "{}", printed.err);
    let printed = run(remote(&Workspace::new(), &server).env("MODEL", "gamma"));
    assert_eq!(printed.code, 0, "{}", printed.err);
}

#[test]
fn a_slow_answer_is_waited_for() {
    let pause = || Act::Wait(Duration::from_millis(60));
    let Act::Send(last) = word(WORDS[2]) else {
        panic!("a word is sent");
    };
    let halves = last.split_at(last.len() / 2);
    let slow = vec![
        pause(),
        head(),
        pause(),
        word(WORDS[0]),
        pause(),
        chunk(b": ping\n\n"),
        word(WORDS[1]),
        // A word in two pieces of TCP.
        Act::Send(halves.0.to_vec()),
        pause(),
        Act::Send(halves.1.to_vec()),
        finish("stop"),
        event("[DONE]"),
        end(),
    ];
    let counts = survives(vec![slow], &[("TOKEN_TIMEOUT", "30")]);
    assert_eq!(
        (&counts["retries"], &counts["timeouts"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(counts["without_usage"], 1);
}

#[test]
fn a_server_that_stalls_before_a_token_is_left() {
    for acts in [vec![Act::Hang], vec![head(), Act::Hang]] {
        let counts = survives(vec![acts], &[("FIRST_TOKEN_TIMEOUT", "1")]);
        assert_eq!(
            (&counts["retries"], &counts["timeouts"]),
            (&json!(1), &json!(1))
        );
        assert_eq!(counts["discarded_chunks"], 0);
    }
}

#[test]
fn a_server_that_stalls_between_tokens_is_left() {
    let server = Server::first(vec![vec![
        head(),
        word("Lost"),
        chunk(b": ping\n\n"),
        Act::Hang,
    ]]);
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).env("TOKEN_TIMEOUT", "1"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let step = &workspace.steps()[0];
    // What came of the attempt that was left is no part of the answer, and of no time but the whole.
    assert_eq!(step["output"], "All is well.");
    assert_eq!(step["gaps_ms"].as_array().map(Vec::len), Some(2));
    assert_eq!(step["attempts"], 2);
    let counts = traffic(&workspace);
    assert_eq!(
        (&counts["timeouts"], &counts["discarded_chunks"]),
        (&json!(1), &json!(1))
    );
    // The server has seen the connection go.
    assert_eq!(server.hung_up(), 1);
}

#[test]
fn a_request_has_its_time_in_all() {
    let server =
        Server::start(|request| (request.method == "POST").then(|| vec![head(), Act::Hang]));
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server).envs([
        ("REQUEST_TIMEOUT", "0.3"),
        ("FIRST_TOKEN_TIMEOUT", "0.1"),
        ("MAX_ATTEMPTS", "1000"),
    ]));
    assert_eq!(printed.code, 4, "{}", printed.err);
    assert!(printed.err.contains("REQUEST_TIMEOUT"), "{}", printed.err);
    let counts = traffic(&workspace);
    assert_eq!(counts["timeouts"], counts["attempts"]);
    assert_eq!(counts["failed_requests"], 1);
}

#[test]
fn a_connection_that_is_cut_is_made_again() {
    let cut = [
        // Before an answer; within its head; before a token; after one; within one; without `[DONE]`.
        (vec![Act::Close], 0),
        (
            vec![
                Act::Send(b"HTTP/1.1 200 OK\r\nContent-".to_vec()),
                Act::Close,
            ],
            0,
        ),
        (vec![head(), Act::Close], 0),
        (vec![head(), word("Lost"), word(" words"), Act::Close], 2),
        (
            vec![
                head(),
                Act::Send(b"ff\r\ndata: {\"choi".to_vec()),
                Act::Close,
            ],
            0,
        ),
        (vec![head(), word("Lost"), end()], 1),
        // llama-cpp-python does so to a request when another one comes.
        (vec![head(), word("Lost"), event("[DONE]"), end()], 1),
    ];
    for (acts, discarded) in cut {
        let counts = survives(vec![acts.clone(), acts.clone()], &[]);
        assert_eq!(counts["retries"], 2, "{acts:?}");
        assert_eq!(counts["cut_off"], 2, "{acts:?}");
        assert_eq!(counts["discarded_chunks"], 2 * discarded, "{acts:?}");
    }
    let (_, counts) = fails(
        vec![head(), word("Lost"), Act::Close],
        &["cut off", "attempt 2 of 2"],
    );
    assert_eq!(counts["failed_requests"], 1);
}

#[test]
fn an_answer_may_end_without_its_mark() {
    let acts = vec![
        Act::Send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n".to_vec()),
        Act::Send(b"data: {\"choices\": [{\"delta\": {\"content\": \"All is well.\"}, \"finish_reason\": \"length\"}]}\r\n\r\n".to_vec()),
        Act::Close,
    ];
    let counts = survives(vec![acts], &[]);
    assert_eq!(counts["retries"], 0);
}

#[test]
fn a_server_that_is_busy_or_broken_is_asked_again() {
    let refusal = |status, headers: &[(&str, &str)]| {
        vec![raw(
            status,
            "application/json",
            headers,
            br#"{"error": {"message": "not now"}}"#,
        )]
    };
    let counts = survives(
        vec![refusal(429, &[("Retry-After", "0.05")]), refusal(429, &[])],
        &[],
    );
    assert_eq!(
        (&counts["retries"], &counts["rate_limited"]),
        (&json!(2), &json!(2))
    );
    // What the server asks for is waited, and the wait is counted.
    assert!(counts["backoff_ms"].as_f64() >= Some(50.0), "{counts}");
    let counts = survives(
        vec![refusal(500, &[]), refusal(503, &[]), refusal(408, &[])],
        &[],
    );
    assert_eq!(
        (&counts["retries"], &counts["server_errors"]),
        (&json!(3), &json!(3))
    );
    let broken = vec![
        head(),
        event(r#"{"error": {"message": "out of pages", "code": 500}}"#),
        end(),
    ];
    let counts = survives(vec![broken], &[]);
    assert_eq!(
        (&counts["retries"], &counts["server_errors"]),
        (&json!(1), &json!(1))
    );

    let (_, counts) = fails(refusal(500, &[]), &["500", "not now", "attempt 2 of 2"]);
    assert_eq!(
        (&counts["attempts"], &counts["retries"]),
        (&json!(2), &json!(1))
    );
    let (printed, _) = fails(
        refusal(429, &[("Retry-After", "86400")]),
        &["429", "REQUEST_TIMEOUT"],
    );
    assert!(printed.out.contains(" retries=0 "), "{}", printed.out);
}

#[test]
fn what_the_server_will_not_do_is_not_asked_twice() {
    let body = json!({"error": {"message": "This model's maximum context length is 2048 tokens"}});
    let (_, counts) = fails(
        vec![json_answer(400, &body)],
        &["400 Bad Request: This model's maximum"],
    );
    assert_eq!(
        (&counts["attempts"], &counts["refused"]),
        (&json!(1), &json!(1))
    );
    fails(
        vec![json_answer(404, &json!({"detail": "Not Found"}))],
        &["404", "MODEL"],
    );
    let moved = raw(
        302,
        "text/plain",
        &[(
            "Location",
            "http://127.0.0.1:1/v1/chat/completions?k=canary",
        )],
        b"",
    );
    let (printed, _) = fails(
        vec![moved],
        &["redirects to http://127.0.0.1:1/v1/chat/completions"],
    );
    assert!(!printed.err.contains("canary"), "{}", printed.err);
}

#[test]
fn garbage_is_named() {
    for (acts, words) in [
        (
            vec![
                Act::Send(b"\x16\x03\x01 no HTTP at all\r\n\r\n".to_vec()),
                Act::Close,
            ],
            &["not HTTP"][..],
        ),
        (
            vec![
                head(),
                Act::Send(b"zz\r\nno chunk\r\n".to_vec()),
                Act::Close,
            ],
            &["not HTTP"],
        ),
        (
            vec![head(), event("{\"choices\": [{oops"), end()],
            &["invalid JSON in the stream: {\"choices\": [{oops"],
        ),
        (
            vec![head(), event("\"hello\""), end()],
            &["no completion chunk in the stream: \"hello\""],
        ),
        (
            vec![head(), chunk(b"data: \xff\xfe\xfd\n\n"), end()],
            &["invalid UTF-8"],
        ),
        (
            vec![raw(200, "text/html", &[], b"<h1>Welcome</h1>")],
            &["text/html", "<h1>Welcome</h1>"],
        ),
        (
            vec![json_answer(200, &json!({"choices": []}))],
            &["application/json instead of a stream"],
        ),
    ] {
        let (_, counts) = fails(acts.clone(), words);
        assert_eq!(counts["malformed"], 1, "{acts:?}");
        assert_eq!(counts["retries"], 0, "{acts:?}");
    }
}

#[test]
fn a_huge_line_is_taken_up_to_a_limit() {
    let long = "long ".repeat(200_000);
    let server = Server::first(vec![answer(&[&long], Some(USAGE))]);
    let workspace = Workspace::new();
    let printed = run(&mut remote(&workspace, &server));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert_eq!(
        workspace.steps()[0]["output"].as_str().map(str::len),
        Some(long.len())
    );

    let mut endless = vec![head(), Act::Send(b"ffffffff\r\ndata: ".to_vec())];
    endless.extend((0..9).map(|_| Act::Send(vec![b'x'; 1 << 20])));
    endless.push(Act::Hang);
    fails(endless, &["an event of more than 8 MiB"]);
}

#[test]
fn no_usage_is_told_and_chunks_are_counted() {
    let server = Server::start(|request| (request.method == "POST").then(|| answer(&WORDS, None)));
    let workspace = Workspace::new();
    let printed = run(&mut remote(&workspace, &server));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(
        printed.err.contains("sent no usage with 3 answers"),
        "{}",
        printed.err
    );
    for step in workspace.steps() {
        assert_eq!(
            (&step["decode_tokens"], &step["prompt_tokens"]),
            (&json!(3), &json!(0))
        );
        assert_eq!(step["counted_by"], "chunks");
    }
    assert_eq!(traffic(&workspace)["without_usage"], 3);
}

#[test]
fn a_server_that_is_not_there() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let endpoint = format!("http://{}/v1", free.local_addr().expect("bound"));
    drop(free);
    let workspace = Workspace::new();
    let printed = run(&mut at(&workspace, &endpoint));
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(
        printed.err.contains("Connection refused"),
        "{}",
        printed.err
    );
    assert!(
        printed.err.contains("hint: is the server running"),
        "{}",
        printed.err
    );
    let kept = std::fs::read_dir(workspace.file("results"))
        .expect("made")
        .count();
    assert_eq!(kept, 0, "nothing was measured");
}

/// Everything under the workspace, as one text.
fn all_files(folder: &std::path::Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        if path.is_dir() {
            text.push_str(&all_files(&path));
        } else {
            text.push_str(&String::from_utf8_lossy(
                &std::fs::read(&path).expect("readable"),
            ));
        }
    }
    text
}

#[test]
fn the_key_goes_to_the_server_and_nowhere_else() {
    let key = "sk-canary-5f3e";
    // The server quotes it, as some do.
    let server = Server::start(move |request| {
        let known = request.header("authorization") == Some("Bearer sk-canary-5f3e");
        let quoted = json!({"error": {"message": "Incorrect API key provided: sk-canary-5f3e"}});
        (!known || request.number == 1).then(|| vec![json_answer(401, &quoted)])
    });
    let workspace = Workspace::new();
    let printed = run(remote(&workspace, &server)
        .env("API_KEY", key)
        .envs([("PROFILE", "1"), ("QUIET", "0")])
        .arg("--show-output"));
    assert_eq!(printed.code, 100, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("Incorrect API key provided: [API_KEY]"),
        "{}",
        printed.err
    );
    assert!(
        printed.err.contains("set API_KEY in the environment"),
        "{}",
        printed.err
    );
    assert_eq!(server.posts().len(), 2);
    for output in [&printed.out, &printed.err, &all_files(workspace.path())] {
        assert!(!output.contains("canary"), "{output}");
    }

    // At the start, and in the report, too.
    let printed = run(remote(&Workspace::new(), &server).env("API_KEY", "sk-canary-5f3e-other"));
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(printed.err.contains("set API_KEY"), "{}", printed.err);
    run(workspace.flowbench(&["report"]).env("API_KEY", key));
    let printed = run(workspace.flowbench(&["diagnose"]).env("API_KEY", key));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(!all_files(workspace.path()).contains("canary"));
    // Nor is there a flag for it, and help does not show what is set.
    let help = run(workspace
        .flowbench(&["run", "--help"])
        .envs([("API_KEY", key), ("ENDPOINT", "http://canary/v1")]));
    assert!(!help.out.contains("canary") && !help.out.contains("--api-key"));
}

#[test]
fn an_endpoint_s_secrets_are_not_kept() {
    let server = Server::start(|request| {
        let path = request
            .path
            .strip_suffix("?token=canary")
            .expect("the query goes along");
        let mut request = request.clone();
        request.path = path.to_owned();
        Some(crate::common::server::sound(&request))
    });
    let workspace = Workspace::new();
    let endpoint = format!("{}?token=canary", server.endpoint());
    let printed = run(&mut at(&workspace, &endpoint));
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(!all_files(workspace.path()).contains("canary"));

    let printed = run(&mut at(&workspace, "http://user:canary@127.0.0.1:1/v1"));
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(!printed.err.contains("canary"), "{}", printed.err);
    let printed = run(workspace.scripted().env("ENDPOINT", &endpoint));
    assert_eq!(printed.code, 2, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("ENDPOINT is set, but MODE is scripted"),
        "{}",
        printed.err
    );
    let printed = run(workspace.scripted().env("MODE", "remote"));
    assert!(
        printed.err.contains("ENDPOINT is not set"),
        "{}",
        printed.err
    );
}

#[test]
fn no_device_and_no_model_are_looked_for() {
    let server = Server::sound();
    let workspace = Workspace::new();
    let printed =
        run(remote(&workspace, &server).envs([("DEVICE", "cuda"), ("BACKEND", "native")]));
    assert_eq!(printed.code, 0, "{}", printed.err);
}

#[test]
fn an_interrupt_hangs_up() {
    use std::io::Read;

    let server = Server::start(|request| {
        (request.method == "POST").then(|| vec![head(), word("On "), Act::Hang])
    });
    let workspace = Workspace::new();
    let mut child = workspace
        .child(&[
            ("MODE", "remote"),
            ("ENDPOINT", &server.endpoint()),
            ("NUM_FLOWS", "3"),
        ])
        .spawn()
        .expect("starts");
    while server.posts().len() < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("it runs");
    let mut err = String::new();
    child
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut err)
        .expect("UTF-8");
    assert_eq!(child.wait().expect("ends").code(), Some(106), "{err}");
    assert_eq!(workspace.record()["status"], "incomplete");
}

#[test]
fn a_run_is_a_script_and_its_words_have_the_same_hashes() {
    let server = Server::sound();
    let workspace = Workspace::new();
    let live = run(&mut remote(&workspace, &server));
    let script = workspace.run_folder().join("steps.jsonl");
    let played = run(workspace
        .scripted()
        .envs([("NUM_FLOWS", "1"), ("SCRIPT_LATENCY", "0")])
        .env("SCRIPT", script));
    assert_eq!(played.code, 0, "{}", played.err);
    assert_eq!(live.hashes(), played.hashes());
}

/// A tokenizer of which every word, or run of signs, is a token; chats are put into `<role>` marks.
fn tokenizer(workspace: &Workspace) {
    let file = json!({
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {"[UNK]": 0}, "unk_token": "[UNK]"},
        "pre_tokenizer": {"type": "Whitespace"},
        "added_tokens": [],
        "normalizer": null, "post_processor": null, "decoder": null,
        "truncation": null, "padding": null,
    });
    workspace.write("model/tokenizer.json", file.to_string());
    let template = "{% for message in messages %}[{{ message.role }}] {{ message.content }}\n\
                    {% endfor %}[assistant]";
    workspace.write(
        "model/tokenizer_config.json",
        json!({"chat_template": template}).to_string(),
    );
}

/// Tokens of a text by that tokenizer.
fn words(text: &str) -> usize {
    let kind = |character: char| match character {
        _ if character.is_whitespace() => 0,
        _ if character.is_alphanumeric() || character == '_' => 1,
        _ => 2,
    };
    let mut count = 0;
    let mut last = 0;
    for character in text.chars() {
        let kind = kind(character);
        count += usize::from(kind != 0 && kind != last);
        last = kind;
    }
    count
}

#[test]
fn the_server_s_counts_are_checked_by_the_local_tokenizer() {
    let workspace = Workspace::new();
    tokenizer(&workspace);
    let server = Server::sound();
    let printed = run(remote(&workspace, &server).env("TOKENIZER", "model/tokenizer.json"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let counts = traffic(&workspace);
    assert_eq!(
        (&counts["checked"], &counts["prompt_mismatches"]),
        (&json!(3), &json!(3))
    );
    // All is well, and a full stop.
    assert_eq!(counts["decode_mismatches"], 0);
    let first = &counts["first_mismatch"];
    assert_eq!(
        (&first["flow"], &first["step"], &first["usage"]),
        (&json!(1), &json!("planner"), &json!(20))
    );
    let told = format!(
        "on the prompts of 3 and the answers of 0 of 3 requests; first in flow 1, step planner: 20 \
         prompt tokens by usage, {} by the tokenizer",
        first["tokenizer"]
    );
    assert!(printed.err.contains(&told), "{}", printed.err);
    assert!(
        printed.out.contains(" checked=3 usage_mismatches=3"),
        "{}",
        printed.out
    );

    // A server that counts as the tokenizer does.
    let server = Server::start(|request| {
        let messages = request.body["messages"].as_array()?;
        let say = |message: &Value| {
            let text = |name: &str| message[name].as_str().unwrap_or_default().to_owned();
            format!("[{}] {}\n", text("role"), text("content"))
        };
        let prompt: String = messages.iter().map(say).collect();
        Some(answer(
            &WORDS,
            Some((words(&(prompt + "[assistant]")), 0, 5)),
        ))
    });
    let workspace = Workspace::new();
    tokenizer(&workspace);
    let printed = run(remote(&workspace, &server).env("TOKENIZER", "model"));
    assert_eq!(printed.code, 0, "{}", printed.err);
    // Other warnings are none of the counts': the server writes in one piece, if chance has it.
    assert!(!printed.err.contains("tokenizer"), "{}", printed.err);
    assert!(
        printed.out.contains(" checked=3 usage_mismatches=0"),
        "{}",
        printed.out
    );
}

#[test]
fn the_local_tokenizer_stands_in_for_what_the_server_does_not_say() {
    let server = Server::start(|request| (request.method == "POST").then(|| answer(&WORDS, None)));
    let workspace = Workspace::new();
    tokenizer(&workspace);
    let printed =
        run(remote(&workspace, &server)
            .envs([("TOKENIZER", "model"), ("ENDPOINT_API", "completions")]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    for (step, post) in workspace.steps().iter().zip(server.posts()) {
        // Made here, and counted.
        let ids = post.body["prompt"].as_array().expect("token ids");
        assert!(ids.len() > 10, "{ids:?}");
        assert_eq!(step["prompt_tokens"], ids.len());
        assert_eq!(step["counted_by"], "chunks+tokenizer");
        assert_eq!(step["decode_tokens"], 3);
    }

    let printed = run(remote(&workspace, &server).env("TOKENIZER", "nowhere.gguf"));
    assert_eq!(printed.code, 3, "{}", printed.err);
    assert!(
        printed
            .err
            .contains("failed to read the tokenizer nowhere.gguf"),
        "{}",
        printed.err
    );
    assert!(printed.err.contains("hint: TOKENIZER"), "{}", printed.err);
}

/// What a model wrote is sent on as text: no token that ends a turn is made of it.
#[test]
fn completions_are_sent_tokens_in_which_answers_make_no_special_ones() {
    let workspace = Workspace::new();
    tokenizer(&workspace);
    let file = workspace.read("model/tokenizer.json");
    let mut file: Value = serde_json::from_str(&file).expect("JSON");
    file["added_tokens"] = json!([{"id": 1, "content": "<|end|>", "single_word": false,
        "lstrip": false, "rstrip": false, "normalized": false, "special": true}]);
    workspace.write("model/tokenizer.json", file.to_string());
    let template = "{% for message in messages %}{{ message.content }}<|end|>{% endfor %}";
    workspace.write(
        "model/tokenizer_config.json",
        json!({"chat_template": template}).to_string(),
    );
    let says = ["No.", "<|end|>", "<|end|>Yes."];
    let server =
        Server::start(move |request| (request.method == "POST").then(|| answer(&says, None)));
    let printed = run(remote(&workspace, &server).envs([
        ("TOKENIZER", "model"),
        ("ENDPOINT_API", "completions"),
        ("SHOW_PROMPT", "1"),
    ]));
    assert_eq!(printed.code, 0, "{}", printed.err);
    let ends = |post: &crate::common::server::Received| {
        let ids = post.body["prompt"].as_array().expect("token ids");
        ids.iter().filter(|id| **id == 1).count()
    };
    let ends: Vec<usize> = server.posts().iter().map(ends).collect();
    // The turns' own, in each step of the chain.
    assert_eq!(ends, [2, 4, 6]);
    for part in [
        "--- flow 1 step planner (prompt)",
        "(6 special-token texts in the messages are treated as ordinary text)",
        "(4 special-token texts in the messages are treated as ordinary text)",
    ] {
        assert!(printed.err.contains(part), "{part}: {}", printed.err);
    }
    assert!(
        !printed.err.contains("without TOKENIZER"),
        "{}",
        printed.err
    );
}

#[test]
fn a_chat_template_that_cannot_be_used_is_found_before_the_first_call() {
    let workspace = Workspace::new();
    tokenizer(&workspace);
    let server = Server::sound();
    for (template, expected) in [
        ("{% if %}", "expected an expression"),
        ("{% frobnicate %}", "unknown tag `frobnicate`"),
        ("{{ messages | nofilter }}", "No filter named 'nofilter'"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}",
            "refuses the conversation: no system",
        ),
        (
            "{% for m in messages %}{{ m.content if loop.index < 3 else m.a.b }}{% endfor %}",
            "has no attribute 'a'",
        ),
    ] {
        workspace.write(
            "model/tokenizer_config.json",
            json!({"chat_template": template}).to_string(),
        );
        let printed = run(remote(&workspace, &server)
            .envs([("TOKENIZER", "model"), ("ENDPOINT_API", "completions")]));
        assert_eq!(printed.code, 3, "{template}: {}", printed.err);
        assert!(
            printed.err.contains(expected),
            "{template}: {}",
            printed.err
        );
    }
    assert!(server.posts().is_empty());
}

#[test]
fn a_slow_server_and_calls_made_again_are_diagnosed() {
    let slowly = |request: &crate::common::server::Received| {
        let mut acts = vec![Act::Wait(Duration::from_millis(40))];
        acts.extend(match request.number {
            0 => vec![json_answer(429, &json!({"error": "later"}))],
            _ => crate::common::server::sound(request),
        });
        (request.method == "POST").then_some(acts)
    };
    for profile in ["0", "1"] {
        let server = Server::start(slowly);
        let workspace = Workspace::new();
        let settings = [
            ("NUM_FLOWS", "2"),
            ("PROFILE", profile),
            ("RETRY_DELAY", "0.1"),
        ];
        let printed = run(remote(&workspace, &server).envs(settings));
        assert_eq!(printed.code, 0, "{}", printed.err);
        let printed = run(&mut workspace.flowbench(&["diagnose", "-o", "json"]));
        let diagnosis: Value = serde_json::from_str(&printed.out).expect("JSON");
        let causes = diagnosis["causes"].as_array().expect("a list");
        let cause = |id: &str| {
            let cause = causes.iter().find(|cause| cause["id"] == id);
            cause.unwrap_or_else(|| panic!("PROFILE={profile}: no {id} in {causes:?}"))
        };
        assert_eq!(causes[0]["id"], "slow_server", "{causes:?}");
        let evidence = cause("retries")["evidence"].to_string();
        assert!(
            evidence.contains("1 of 7 calls") && evidence.contains("429"),
            "{evidence}"
        );
    }
}
