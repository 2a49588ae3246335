//! Streams as servers send them, whole and in pieces.

use proptest::prelude::*;
use serde_json::json;

use super::*;

/// Feeds a stream: the texts of its parts (thoughts in brackets) and its end.
fn run<'a>(reads: impl IntoIterator<Item = &'a [u8]>) -> (Vec<String>, Result<End, Failure>) {
    let mut answer = Answer::default();
    let mut parts = Vec::new();
    let mut tell = |part: Part| {
        parts.push(match part.thought.as_str() {
            "" => part.text,
            thought => format!("{}({thought})", part.text),
        });
    };
    for bytes in reads {
        match answer.push(bytes, &mut tell) {
            Ok(false) => {}
            Ok(true) => break,
            Err(failure) => return (parts, Err(failure)),
        }
    }
    let end = answer.finish(&mut tell);
    (parts, end)
}

/// The text, and how it ended.
#[track_caller]
fn whole(stream: &str) -> (String, End) {
    let (parts, end) = run([stream.as_bytes()]);
    let end = end.unwrap_or_else(|failure| panic!("{}: {stream}", failure.message));
    (parts.concat() + end.tail, end)
}

#[track_caller]
fn failure(stream: &str) -> Failure {
    let (_, end) = run([stream.as_bytes()]);
    end.expect_err(stream)
}

fn word(text: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": null}]})
    )
}

fn ending(reason: &str) -> String {
    format!(
        "data: {}\n\n",
        json!({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    )
}

const USAGE: &str = "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": 10, \
                     \"completion_tokens\": 3}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

fn sound() -> String {
    [&word("A"), &word(" B"), &ending("stop"), USAGE, DONE].concat()
}

/// `sound()` with `between` between its parts, which must change nothing.
#[track_caller]
fn passes(between: &str) {
    let stream = [
        &word("A"),
        between,
        &word(" B"),
        between,
        &ending("stop"),
        between,
        USAGE,
        DONE,
    ];
    let (text, end) = whole(&stream.concat());
    assert_eq!(
        (text.as_str(), end.finish),
        ("A B", Finish::Stop),
        "{between}"
    );
    assert_eq!(
        (end.counts.prompt, end.counts.decode),
        (Some(10), Some(3)),
        "{between}"
    );
    assert_eq!((end.thoughts, end.bytes), (0, Some(3)), "{between}");
}

#[test]
fn events_outside_the_answer_are_ignored() {
    passes("");
    for between in [
        // Heartbeats.
        "data:\n\n",
        "data: \n\n",
        "data\n\n",
        ":\n\n",
        ": ping\n\n",
        ": OPENROUTER PROCESSING\n\n",
        "event: ping\n\n",
        "event: ping\ndata: {\"type\": \"ping\"}\n\n",
        "event: heartbeat\ndata: x\n\n",
        "data: {\"type\": \"ping\"}\n\n",
        "data: {}\n\n",
        "data: []\n\n",
        "data: null\n\n",
        "data: ping\n\n",
        "id: 7\nretry: 10\n\n",
        "\n\n\n",
        "\r\n",
        // Choices and counts without content.
        "data: {\"choices\": null}\n\n",
        "data: {\"choices\": []}\n\n",
        "data: {\"choices\": [{}]}\n\n",
        "data: {\"choices\": [{\"delta\": null}]}\n\n",
        "data: {\"choices\": [], \"usage\": {}}\n\n",
        "data: {\"choices\": [], \"usage\": 7}\n\n",
        "data: {\"choices\": [], \"usage\": {\"prompt_tokens\": null, \"completion_tokens\": NaN}}\n\n",
        "data: {\"id\": \"x\", \"object\": \"chat.completion.chunk\"}\n\n",
        "data: {\"choices\": [{\"delta\": {\"role\": \"assistant\"}, \"logprobs\": NaN}]}\n\n",
        // Empty errors.
        "data: {\"choices\": [], \"error\": null}\n\n",
        "data: {\"choices\": [], \"error\": \"\"}\n\n",
        "data: {\"choices\": [], \"error\": {}}\n\n",
        "data: {\"choices\": [], \"error\": false}\n\n",
        // Another choice.
        "data: {\"choices\": [{\"index\": 1, \"delta\": {\"content\": \"X\"}, \"finish_reason\": \"abort\"}]}\n\n",
        "event: message\ndata: {\"choices\": []}\n\n",
    ] {
        passes(between);
    }
}

#[test]
fn all_line_endings_and_stream_ends_are_accepted() {
    for stream in [
        sound(),
        sound().replace('\n', "\r\n"),
        sound().replace('\n', "\r"),
        format!("\u{feff}{}", sound()),
        sound().replace("data: ", "data:"),
        sound().trim_end().to_owned(),
        sound().replace(DONE, ""),
        sound().replace(DONE, "").trim_end().to_owned(),
        sound().replace("[DONE]", "[done]"),
        sound() + &word("behind the end"),
        sound().replace(DONE, "event: done\ndata: bye\n\n"),
    ] {
        let (text, end) = whole(&stream);
        assert_eq!(
            (text.as_str(), end.counts.decode),
            ("A B", Some(3)),
            "{stream}"
        );
    }
}

#[test]
fn a_stream_without_a_good_ending_is_an_error() {
    for (stream, cause, words) in [
        (word("A"), Cause::CutOff, "no finish_reason came"),
        (
            word("A") + DONE,
            Cause::CutOff,
            "data: [DONE]) before its end",
        ),
        (
            word("A") + &ending("null"),
            Cause::CutOff,
            "no finish_reason came",
        ),
        (
            word("A") + &ending("") + USAGE + DONE,
            Cause::CutOff,
            "no finish_reason came",
        ),
        (
            word("A") + &ending("abort") + DONE,
            Cause::Server,
            "finish_reason: abort",
        ),
        (
            word("A") + &ending("stop") + &ending("error"),
            Cause::Server,
            "finish_reason: error",
        ),
        (
            word("A") + &ending("lunch"),
            Cause::Server,
            "finish_reason: lunch",
        ),
        (
            word("A") + &ending("content_filter"),
            Cause::Refused,
            "withheld",
        ),
        (String::new(), Cause::CutOff, "no finish_reason came"),
        (
            "data: {\"type\": \"ping\"}\n\ndata: [PING]\n\n".to_owned(),
            Cause::CutOff,
            "no finish_reason came",
        ),
        // The ending belongs to another choice.
        (
            "data: {\"choices\": [{\"index\": 1, \"delta\": {}, \"finish_reason\": \"stop\"}]}\n\n"
                .to_owned()
                + &word("A"),
            Cause::CutOff,
            "no finish_reason came",
        ),
    ] {
        let failure = failure(&stream);
        assert_eq!(failure.cause, cause, "{stream}");
        assert!(failure.message.contains(words), "{}", failure.message);
    }
}

#[test]
fn the_servers_error_is_reported() {
    let body = r#"{"error":{"code":400,"message":"6009 tokens exceed 4096"}}"#;
    let pretty = "{\n  \"error\": {\n    \"code\": 400,\n    \"message\": \"6009 tokens exceed 4096\"\n  }\n}";
    for (stream, cause, words) in [
        (body.to_owned(), Cause::Refused, "6009 tokens exceed 4096"),
        (pretty.to_owned(), Cause::Refused, "6009 tokens exceed 4096"),
        (
            word("A") + body + "\n\n",
            Cause::Refused,
            "6009 tokens exceed 4096",
        ),
        (
            format!("data: {body}"),
            Cause::Refused,
            "6009 tokens exceed 4096",
        ),
        (
            format!("error: {body}\n\n"),
            Cause::Refused,
            "6009 tokens exceed 4096",
        ),
        (
            format!("event: error\ndata: {body}\n\n"),
            Cause::Refused,
            "6009 tokens exceed 4096",
        ),
        (
            "event: error\ndata: out of pages\n\n".to_owned(),
            Cause::Server,
            "error: out of pages",
        ),
        (
            "event: error\nout of pages\n\n".to_owned(),
            Cause::Server,
            "error: out of pages",
        ),
        (
            "event: error\n: out of pages\n\n".to_owned(),
            Cause::Server,
            "error: out of pages",
        ),
        (
            "event: error\n\n".to_owned() + DONE,
            Cause::Server,
            "gives no details",
        ),
        (
            "data: Error: out of pages\n\n".to_owned(),
            Cause::Server,
            "out of pages",
        ),
        (
            "Internal Server Error".to_owned(),
            Cause::CutOff,
            "said: Internal Server Error",
        ),
        (
            word("A") + "Internal Server Error",
            Cause::CutOff,
            "said: Internal Server Error",
        ),
        (
            word("A") + ": worker 3 is gone\n\n",
            Cause::CutOff,
            "commented: worker 3 is gone",
        ),
        (
            "data: {\"hello\": 1}\n\n".to_owned(),
            Cause::Malformed,
            "no completion chunk in the stream: {\"hello\": 1}",
        ),
        (
            word("A") + "data: {\"hello\": 1}\n\n",
            Cause::CutOff,
            "said: {\"hello\": 1}",
        ),
    ] {
        let failure = failure(&stream);
        assert_eq!(failure.cause, cause, "{stream}");
        assert!(failure.message.contains(words), "{}", failure.message);
    }
    // A broken connection does not hide the error.
    let mut answer = Answer::default();
    answer
        .push(body.as_bytes(), &mut |_| {})
        .expect("no line yet");
    let broken = answer.broken(Failure::new(Cause::CutOff, "gone"));
    assert!(broken.message.contains("6009 tokens"), "{}", broken.message);
}

#[test]
fn malformed_events_are_quoted() {
    for (data, words) in [
        ("{oops", "invalid JSON in the stream: {oops"),
        ("[1]", "no completion chunk"),
        ("\"hello\"", "no completion chunk"),
        ("{\"choices\": 3}", "no completion chunk"),
        (
            "{\"choices\": [{\"delta\": {\"content\": 3}}]}",
            "no completion chunk",
        ),
    ] {
        let failure = failure(&format!("data: {data}\n\n"));
        assert_eq!(failure.cause, Cause::Malformed, "{data}");
        assert!(failure.message.contains(words), "{}", failure.message);
    }
    let (_, end) = run([&b"data: \xff\xfe\n\n"[..]]);
    let message = end.expect_err("no UTF-8").message;
    assert!(
        message.contains("invalid UTF-8 in the stream: \u{fffd}\u{fffd}"),
        "{message}"
    );
}

#[test]
fn split_surrogates_are_joined_and_invalid_bytes_replaced() {
    let half = |escape: &str| {
        format!(
            "data: {{\"choices\":[{{\"index\":0,\"delta\":{{\"content\":\"{escape}\"}}}}]}}\n\n"
        )
    };
    let (text, end) = whole(&[half(r"\ud83d"), half(r"\ude00"), ending("stop")].concat());
    assert_eq!(text, "\u{1f600}");
    assert_eq!(end.bytes, Some(4));
    let (text, _) = whole(&[half(r"a\ud83d"), ending("stop")].concat());
    assert_eq!(text, "a\u{fffd}");
    let stop = ending("stop");
    let broken = [
        &b"data: {\"choices\":[{\"delta\":{\"content\":\"a\xf0\x9f\"}}]}\n\n"[..],
        stop.as_bytes(),
    ];
    let (parts, end) = run(broken);
    assert_eq!((parts.concat().as_str(), end.is_ok()), ("a\u{fffd}", true));
}

#[test]
fn thoughts_tools_and_messages() {
    let thought = "data: {\"choices\":[{\"index\":0,\"delta\":{\"reasoning\":\"hm\",\"reasoning_content\":\"\"}}]}\n\n";
    let (text, end) = whole(&[thought, &ending("length")].concat());
    assert_eq!((text.as_str(), end.finish), ("(hm)", Finish::Length));
    assert_eq!((end.thoughts, end.bytes), (1, Some(2)));
    let tool = "data: {\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]},\"finish_reason\":\"tool_calls\"}]}\n\n";
    let (parts, end) = run([tool.as_bytes()]);
    let end = end.expect("a good ending");
    assert_eq!(
        (parts.len(), end.finish, end.bytes),
        (1, Finish::ToolCalls, None)
    );

    let message = |text: &str, reason: serde_json::Value| {
        let choice = json!({"message": {"content": text}, "finish_reason": reason});
        format!("data: {}\n\n", json!({"choices": [choice]}))
    };
    let stop = json!("stop");
    for stream in [
        // The last chunk has the whole answer, the rest of it, or everything.
        [word("A"), word(" B"), message("A B", stop.clone())].concat(),
        [word("A"), word(" B\n"), message("A B", stop.clone())].concat(),
        [word("A"), message("A B", stop.clone())].concat(),
        [word("A"), message(" B", stop.clone())].concat(),
        message("A B", stop.clone()),
        // Pieces, and the answer so far.
        [message("A", json!(null)), message(" B", stop.clone())].concat(),
        [message("A", json!(null)), message("A B", stop.clone())].concat(),
    ] {
        let (text, _) = whole(&stream);
        assert_eq!(text.trim_end(), "A B", "{stream}");
    }
}

#[test]
fn one_of_several_answers_is_followed() {
    let choice = |index: i64, text: &str, reason: serde_json::Value| json!({"index": index, "delta": {"content": text}, "finish_reason": reason});
    let event =
        |choices: &[serde_json::Value]| format!("data: {}\n\n", json!({"choices": choices}));
    let (none, stop) = (json!(null), json!("stop"));
    let streams = [
        event(&[choice(1, "X", none.clone()), choice(0, "A", none.clone())])
            + &event(&[
                choice(0, " B", stop.clone()),
                choice(1, " Y", json!("length")),
            ]),
        event(&[choice(0, "A", none.clone())])
            + &event(&[choice(1, "X", none.clone())])
            + &event(&[choice(1, "", json!("length"))])
            + &event(&[choice(0, " B", stop.clone())]),
        // A server that does not count from 0.
        event(&[choice(3, "A", none.clone())]) + &event(&[choice(3, " B", stop)]),
    ];
    for stream in streams {
        let (text, end) = whole(&stream);
        assert_eq!(
            (text.as_str(), end.finish),
            ("A B", Finish::Stop),
            "{stream}"
        );
    }
}

#[test]
fn counts_are_compared_with_what_was_streamed() {
    let end =
        |decode: Option<usize>, reasoning: Option<usize>, thoughts: usize, bytes: usize| End {
            finish: Finish::Stop,
            counts: Counts {
                decode,
                reasoning,
                ..Counts::default()
            },
            tail: "",
            thoughts,
            bytes: Some(bytes),
        };
    let streamed = |end: End, chunks: usize| {
        let streamed = end.streamed(chunks);
        (streamed.hidden, streamed.tokens, streamed.one_piece)
    };
    // The normal case; several tokens per chunk; no counts.
    assert_eq!(
        streamed(end(Some(4), None, 0, 12), 3),
        (None, Some(4), false)
    );
    assert_eq!(
        streamed(end(Some(50), None, 0, 200), 10),
        (None, Some(50), false)
    );
    assert_eq!(streamed(end(None, None, 0, 12), 3), (None, Some(3), false));
    // Thoughts that were streamed, that were not, and that the server does not count.
    assert_eq!(
        streamed(end(Some(505), Some(500), 480, 2000), 485),
        (None, Some(505), false)
    );
    assert_eq!(
        streamed(end(Some(505), Some(500), 0, 5), 5),
        (Some(500), Some(5), false)
    );
    assert_eq!(
        streamed(end(Some(505), None, 0, 5), 5),
        (Some(500), None, false)
    );
    // Thoughts that are counted separately but streamed as text.
    assert_eq!(
        streamed(end(Some(505), Some(500), 0, 2000), 500),
        (None, Some(505), false)
    );
    // In one piece. A word and the end-of-turn token are two tokens in one chunk.
    assert_eq!(
        streamed(end(Some(50), None, 0, 200), 1),
        (None, Some(50), true)
    );
    assert_eq!(streamed(end(None, None, 0, 200), 1), (None, Some(1), true));
    assert_eq!(
        streamed(end(Some(2), None, 0, 3), 1),
        (None, Some(2), false)
    );
    // The count to compare with the local tokenizer's.
    assert_eq!(end(Some(4), None, 0, 12).answer_tokens(), Some(4));
    assert_eq!(end(Some(505), Some(500), 7, 12).answer_tokens(), Some(5));
    assert_eq!(end(Some(505), None, 7, 12).answer_tokens(), None);
}

/// Random streams of valid pieces and arbitrary bytes.
fn stream() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        4 => "[a-c \u{fc}\u{1f600}]{0,3}".prop_map(|text| word(&text).into_bytes()),
        1 => Just(ending("stop").into_bytes()),
        1 => Just(ending("abort").into_bytes()),
        1 => Just(USAGE.as_bytes().to_vec()),
        1 => Just(DONE.as_bytes().to_vec()),
        1 => Just(b": comment\r\n\r\n".to_vec()),
        1 => Just(b"event: error\ndata: why\n\n".to_vec()),
        1 => Just(b"{\"error\": \"why\"}\n\n".to_vec()),
        1 => Just(b"data: {\"choices\":[{\"delta\":{\"content\":\"\\ud83d\"}}]}\n\n".to_vec()),
        1 => Just(b"data: {\"choices\":[{\"delta\":{\"content\":\"\\ude00\"}}]}\n\n".to_vec()),
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    /// The result does not depend on how the stream is split into reads.
    #[test]
    fn cuts_do_not_matter(
        stream in stream(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..10),
    ) {
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
        cuts.extend([0, stream.len()]);
        cuts.sort_unstable();
        let whole = run([stream.as_slice()]);
        let pieces = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]);
        prop_assert_eq!(&run(pieces), &whole);
        prop_assert_eq!(&run(stream.chunks(1)), &whole);
    }

    /// The text does not depend on how it is split into events.
    #[test]
    fn splits_into_events_do_not_matter(
        text in "[a-c \"\\\\\u{fc}\u{1f600}]{1,12}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let characters: Vec<char> = text.chars().collect();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(characters.len() + 1)).collect();
        cuts.extend([0, characters.len()]);
        cuts.sort_unstable();
        let words = cuts.windows(2).map(|cut| word(&characters[cut[0]..cut[1]].iter().collect::<String>()));
        let stream = words.collect::<String>() + &ending("stop") + DONE;
        let (read, end) = whole(&stream);
        prop_assert_eq!(&read, &text);
        prop_assert_eq!(end.bytes, Some(text.len()));
    }

    #[test]
    fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = run([bytes.as_slice()]);
        let event = [b"data: ", bytes.as_slice(), b"\n\n"].concat();
        let _ = run([event.as_slice()]);
    }
}
