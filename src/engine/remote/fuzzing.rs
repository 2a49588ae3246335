//! Laws of a server's stream.

use super::answer::{Answer, End, Part};
use super::failure::Failure;
use super::sse::{Event, EventParser};

/// The events of a stream, and what an answer makes of it, do not depend on how the stream is cut. The first
/// byte says how.
pub(in crate::engine) fn stream(data: &[u8]) {
    let Some((cut, stream)) = data.split_first() else {
        return;
    };
    let pieces = || stream.chunks(usize::from(*cut).max(1));
    assert_eq!(events(std::iter::once(stream)), events(pieces()));
    let (text, end) = answer(std::iter::once(stream));
    let (text_of_pieces, end_of_pieces) = answer(pieces());
    assert_eq!(text, text_of_pieces);
    match (end, end_of_pieces) {
        (Ok(end), Ok(of_pieces)) => assert_eq!(end, of_pieces),
        (Err(failure), Err(of_pieces)) => assert_eq!(failure.message, of_pieces.message),
        (end, of_pieces) => panic!("{:?} and {:?}", end.is_ok(), of_pieces.is_ok()),
    }
}

/// `None` if an event is too long.
fn events<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Option<Vec<Event>> {
    let mut parser = EventParser::default();
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece).ok()?);
    }
    events.extend(parser.finish());
    Some(events)
}

fn answer<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> (String, Result<End, Failure>) {
    let mut answer = Answer::default();
    let mut text = String::new();
    let mut tell = |part: Part| {
        text.push_str(&part.text);
        text.push_str(&part.thought);
    };
    for piece in pieces {
        match answer.push(piece, &mut tell) {
            Ok(false) => {}
            Ok(true) => break,
            Err(failure) => return (text, Err(failure)),
        }
    }
    let end = answer.finish(&mut tell);
    if let Ok(end) = &end {
        let _ = (end.answer_tokens(), end.streamed(1), end.streamed(1000));
    }
    (text, end)
}
