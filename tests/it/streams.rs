//! Streams of `MODE=remote` as servers write them: endings, counts, thoughts, bursts, and errors
//! behind a good status.

use std::time::Duration;

use crate::common::server::{Act, Server, chunk, end, event, finish, head, raw, word};
use crate::common::{Printed, Workspace, run};
use serde_json::{Value, json};

/// A run of one flow, every step of which is answered so.
fn answered(acts: Vec<Act>) -> (Printed, Workspace) {
    answered_with(acts, &[])
}

fn answered_with(acts: Vec<Act>, settings: &[(&str, &str)]) -> (Printed, Workspace) {
    let server = Server::start(move |request| (request.method == "POST").then(|| acts.clone()));
    let workspace = Workspace::new();
    let mut command = workspace.flowbench(&["run"]);
    command.envs([
        ("MODE", "remote"),
        ("TEMPLATE", "chain"),
        ("NUM_FLOWS", "1"),
        ("ENDPOINT", &server.endpoint()),
        ("RETRY_DELAY", "0.001"),
        ("MAX_ATTEMPTS", "2"),
        ("QUIET", "1"),
    ]);
    command.envs(settings.iter().copied());
    (run(&mut command), workspace)
}

/// The first step of a run that ends well.
#[track_caller]
fn step(acts: Vec<Act>) -> Value {
    let (printed, workspace) = answered(acts);
    assert_eq!(printed.code, 0, "{}", printed.err);
    workspace.steps()[0].clone()
}

/// The counts of a run that fails, and whose error holds these words.
#[track_caller]
fn fails(acts: Vec<Act>, words: &str) -> Value {
    let (printed, workspace) = answered(acts);
    assert_eq!(printed.code, 4, "{}", printed.err);
    assert!(printed.err.contains(words), "{words} in {}", printed.err);
    assert_eq!(workspace.steps(), [] as [Value; 0]);
    let record = workspace.record();
    let error = record["workflows"][0]["error"].as_str().unwrap_or_default();
    assert!(error.contains(words), "{words} in {error}");
    record["totals"]["remote"].clone()
}

fn usage(counts: Value) -> Act {
    event(&json!({"choices": [], "usage": counts}).to_string())
}

fn delta(delta: Value) -> Act {
    event(&json!({"choices": [{"index": 0, "delta": delta}]}).to_string())
}

/// The acts between a stream's head and its end.
fn stream(acts: Vec<Act>) -> Vec<Act> {
    let mut all = vec![head()];
    all.extend(acts);
    all.extend([event("[DONE]"), end()]);
    all
}

fn pause(ms: u64) -> Act {
    Act::Wait(Duration::from_millis(ms))
}

#[test]
fn only_a_good_ending_makes_an_answer() {
    for reason in [
        "abort",
        "timeout",
        "cancelled",
        "insufficient_system_resource",
        "lunch",
    ] {
        let counts = fails(
            stream(vec![word("Half an"), finish(reason)]),
            &format!("finish_reason: {reason}"),
        );
        assert_eq!(
            (&counts["attempts"], &counts["server_errors"]),
            (&json!(2), &json!(2))
        );
        assert_eq!(counts["discarded_chunks"], 2);
    }
    // The text "null" is no ending.
    let counts = fails(
        vec![head(), word("Half an"), finish("null"), end()],
        "no finish_reason came",
    );
    assert_eq!(counts["cut_off"], 2);
    for (reason, kept) in [
        ("eos_token", "stop"),
        ("MAX_TOKENS", "length"),
        ("tool_calls", "tool_calls"),
    ] {
        let step = step(stream(vec![word("All"), finish(reason)]));
        assert_eq!(
            (&step["output"], &step["finish"]),
            (&json!("All"), &json!(kept))
        );
    }
}

#[test]
fn the_server_s_reason_reaches_the_user() {
    let long = json!({"error": {"code": 400, "message": "6009 tokens exceed the context of 4096"}});
    // A body without `data:`, behind the head of a stream; the same as JSON.
    for acts in [
        vec![head(), chunk(long.to_string().as_bytes()), end()],
        vec![raw(
            200,
            "application/json",
            &[],
            long.to_string().as_bytes(),
        )],
        stream(vec![word("A"), event(&long.to_string())]),
    ] {
        let counts = fails(acts, "6009 tokens exceed the context of 4096");
        assert_eq!(
            (&counts["attempts"], &counts["refused"]),
            (&json!(1), &json!(1))
        );
    }
    for said in [
        "event: error\ndata: out of pages\n\n",
        "event: error\n: out of pages\n\n",
    ] {
        let counts = fails(
            stream(vec![word("A"), chunk(said.as_bytes())]),
            "error: out of pages",
        );
        assert_eq!(counts["server_errors"], 2);
    }
    // One that stalls has said why.
    let stalls = vec![head(), chunk(b": no worker is free\n\n"), Act::Hang];
    let (printed, _) = answered_with(stalls, &[("FIRST_TOKEN_TIMEOUT", "0.3")]);
    assert!(
        printed
            .err
            .contains("(FIRST_TOKEN_TIMEOUT); the server commented: no worker is free"),
        "{}",
        printed.err
    );
    let gone = vec![
        head(),
        word("A"),
        chunk(b": worker 3 is gone\n\n"),
        Act::Close,
    ];
    assert_eq!(fails(gone, "worker 3 is gone")["cut_off"], 2);
}

#[test]
fn what_is_optional_is_lenient() {
    let step = step(vec![
        raw(200, "Text/Event-Stream; charset=UTF-8", &[], &[
            "data:\n\n",
            ": PROCESSING\n\n",
            "data: {\"choices\": null, \"error\": null, \"usage\": {}}\n\n",
            "data: {\"choices\": [{\"delta\": {\"content\": [{\"type\": \"text\", \"text\": \"A\"}]}}]}\n\n",
            "event: ping\ndata: {}\n\n",
            "data: {\"choices\": [{\"delta\": {\"content\": \"\\ud83d\"}}]}\n\n",
            "data: {\"choices\": [{\"delta\": {\"content\": \"\\ude00\"}}]}\n\n",
            "data: {\"choices\": [{\"delta\": null, \"finish_reason\": \"stop\"}]}\n\n",
            "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 10.0, \"completion_tokens\": 3, \"prompt_cache_hit_tokens\": 8}}\n\n",
            "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 0, \"completion_tokens\": 0}}\n\n",
            "data: [DONE]",
        ].concat().into_bytes()),
    ]);
    assert_eq!(step["output"], "A\u{1f600}");
    assert_eq!(
        (&step["prompt_tokens"], &step["reused_tokens"]),
        (&json!(10), &json!(8))
    );
    assert_eq!(
        (&step["decode_tokens"], &step["counted_by"]),
        (&json!(3), &json!("usage"))
    );
}

#[test]
fn zeros_beside_a_text_are_no_count() {
    let zeros = json!({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0});
    let acts = stream(vec![word("A"), word(" B"), finish("stop"), usage(zeros)]);
    let (printed, workspace) = answered(acts);
    assert_eq!(printed.code, 0, "{}", printed.err);
    assert!(
        printed.err.contains("sent no usage with 3 answers"),
        "{}",
        printed.err
    );
    let step = &workspace.steps()[0];
    assert_eq!(
        (&step["decode_tokens"], &step["counted_by"]),
        (&json!(2), &json!("chunks"))
    );
}

#[test]
fn a_prompt_that_nobody_counted_is_told() {
    let alone = json!({"completion_tokens": 2});
    let acts = stream(vec![word("A"), word(" B"), finish("stop"), usage(alone)]);
    let (printed, workspace) = answered(acts);
    assert_eq!(printed.code, 0, "{}", printed.err);
    let told = "sent no usage with 3 answers, or usage without token counts";
    assert!(printed.err.contains(told), "{}", printed.err);
    let step = &workspace.steps()[0];
    assert_eq!(
        (&step["prompt_tokens"], &step["decode_tokens"]),
        (&json!(0), &json!(2))
    );
}

#[test]
fn an_answer_in_one_burst_has_no_time_per_token() {
    let events = ["A", " B", " C"].map(|text| {
        format!(
            "data: {}\n\n",
            json!({"choices": [{"delta": {"content": text}}]})
        )
    });
    let counts = json!({"prompt_tokens": 10, "completion_tokens": 3});
    let at_once = chunk(events.concat().as_bytes());
    let piece = step(stream(vec![
        pause(300),
        at_once,
        finish("stop"),
        usage(counts.clone()),
    ]));
    assert_eq!(
        (&piece["burst"], &piece["tpot_ms"]),
        (&json!(true), &Value::Null)
    );
    assert_eq!(piece["decode_tokens_per_s"], Value::Null);
    // One chunk for all.
    let piece = step(stream(vec![
        pause(300),
        word("A B C"),
        finish("stop"),
        usage(counts.clone()),
    ]));
    assert_eq!(
        (&piece["burst"], &piece["tpot_ms"]),
        (&json!(true), &Value::Null)
    );
    // One that is streamed; decode ends with the last text, not with what follows.
    let words = vec![
        word("A"),
        pause(100),
        word(" B"),
        pause(100),
        word(" C"),
        pause(800),
    ];
    let last = [finish("stop"), usage(counts)];
    let step = step(stream(words.into_iter().chain(last).collect()));
    assert_eq!(step["burst"], Value::Null);
    assert_eq!(step["gaps_between"], "chunks");
    // With what follows it would be 500: a busy machine may read a word late, and still tells the two apart.
    let tpot = step["tpot_ms"].as_f64().expect("three tokens");
    assert!((50.0..400.0).contains(&tpot), "{tpot}");
    assert!(step["latency_ms"].as_f64() > Some(900.0), "{step}");
}

#[test]
fn thoughts_that_are_not_streamed_are_told() {
    let mut acts = vec![pause(100)];
    for text in ["A", "B", "C", "D", "E"] {
        acts.extend([word(text), pause(50)]);
    }
    let counts = |details: Value| {
        usage(json!({"prompt_tokens": 10, "completion_tokens": 505,
            "completion_tokens_details": details}))
    };
    let answer = |details| {
        let mut acts = acts.clone();
        acts.extend([finish("stop"), counts(details)]);
        step(stream(acts))
    };
    let told = answer(json!({"reasoning_tokens": 500}));
    assert_eq!(
        (&told["reasoning_tokens"], &told["hidden_tokens"]),
        (&json!(500), &json!(500))
    );
    assert_eq!(told["decode_tokens"], 505);
    let tpot = told["tpot_ms"].as_f64().expect("five were streamed");
    assert!((25.0..400.0).contains(&tpot), "{tpot}");
    // Where nobody says how many: five bytes are five tokens at most.
    let guessed = answer(Value::Null);
    assert_eq!(
        (&guessed["reasoning_tokens"], &guessed["hidden_tokens"]),
        (&Value::Null, &json!(500))
    );
    assert_eq!(guessed["tpot_ms"], Value::Null);
}

#[test]
fn thoughts_that_are_streamed_are_tokens_and_no_text() {
    let hm = json!({"reasoning": "hm", "reasoning_content": "", "content": ""});
    let both = step(stream(vec![
        delta(json!({"role": "assistant", "content": ""})),
        delta(hm.clone()),
        pause(200),
        word("A"),
        finish("stop"),
    ]));
    assert_eq!(
        (&both["output"], &both["reasoning_tokens"]),
        (&json!("A"), &json!(1))
    );
    let (ttft, latency) = (both["ttft_ms"].as_f64(), both["latency_ms"].as_f64());
    assert!(
        latency
            .zip(ttft)
            .is_some_and(|(latency, ttft)| latency - ttft > 190.0),
        "{both}"
    );
    // The limit came before the answer did.
    let counts = json!({"prompt_tokens": 10, "completion_tokens": 3});
    let only = step(stream(vec![delta(hm), finish("length"), usage(counts)]));
    assert_eq!(
        (&only["output"], &only["finish"]),
        (&json!(""), &json!("length"))
    );
    assert_eq!(
        (&only["reasoning_tokens"], &only["decode_tokens"]),
        (&json!(1), &json!(3))
    );
}
