//! A streamed answer: replies of the engine's thread as server-sent events, each as soon as it is there.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::Bytes;
use http_body::{Body, Frame};
use tokio::sync::mpsc::UnboundedReceiver;

use super::answers::{Head, Part, Usage};
use super::order::{CancelOnDrop, Reply};

/// Bytes after which a frame is sent although more replies are there.
const FRAME: usize = 64 << 10;

pub(super) struct EventStream {
    head: Head,
    replies: UnboundedReceiver<Reply>,
    /// The client is gone when the body is dropped before its end.
    cancel: CancelOnDrop,
    include_usage: bool,
    usage: Usage,
    /// Choices that have not ended.
    left: usize,
    /// Events that are not sent yet.
    buffer: String,
    ended: bool,
}

impl EventStream {
    pub(super) fn new(
        head: Head,
        choices: usize,
        include_usage: bool,
        replies: UnboundedReceiver<Reply>,
        cancel: CancelOnDrop,
    ) -> Self {
        let mut stream = Self {
            head,
            replies,
            cancel,
            include_usage,
            usage: Usage::default(),
            left: choices,
            buffer: String::new(),
            ended: false,
        };
        if stream.head.is_chat {
            (0..choices).for_each(|choice| stream.chunk(choice, Part::Start));
        }
        stream
    }

    fn event(&mut self, data: &str) {
        // JSON has no line breaks.
        self.buffer.push_str("data: ");
        self.buffer.push_str(data);
        self.buffer.push_str("\n\n");
    }

    fn chunk(&mut self, choice: usize, part: Part<'_>) {
        let usage = self.include_usage.then_some(None);
        let data = self.head.chunk(choice, part, usage);
        self.event(&data);
    }

    fn end(&mut self) {
        self.ended = true;
        self.cancel.disarm();
    }

    fn take(&mut self, reply: Reply) {
        match reply {
            Reply::Accepted => {}
            Reply::Text { choice, text } => self.chunk(choice, Part::Text(&text)),
            Reply::Finished { choice, completion } => {
                self.usage.add(choice, &completion);
                self.chunk(choice, Part::End(completion.finish.as_str()));
                self.left -= 1;
                if self.left == 0 {
                    if self.include_usage {
                        let data = self.head.usage_chunk(self.usage);
                        self.event(&data);
                    }
                    self.event("[DONE]");
                    self.end();
                }
            }
            // The status is sent already, so the error is an event, as OpenAI's clients expect it.
            Reply::Failed(error) => {
                self.event(&error.json());
                self.end();
            }
        }
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        while !self.ended && self.buffer.len() < FRAME {
            match self.replies.poll_recv(context) {
                Poll::Ready(Some(reply)) => self.take(reply),
                // The engine's thread is gone, and has said why before.
                Poll::Ready(None) => self.end(),
                Poll::Pending => break,
            }
        }
        if !self.buffer.is_empty() {
            let data = std::mem::take(&mut self.buffer);
            return Poll::Ready(Some(Ok(Frame::data(data.into()))));
        }
        match self.ended {
            true => Poll::Ready(None),
            false => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ended && self.buffer.is_empty()
    }
}
