//! The one thread that polls the engine: starts orders, passes events on to their connections, and cancels
//! what nobody waits for any more.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;

use super::errors::ApiError;
use super::metrics::{Metrics, Outcome};
use super::order::{Command, Order, Permit, Reply};
use crate::engine::{Engine, Event, EventKind, RequestId};
use crate::error::{Error, Exit, Result};
use crate::stopwatch::{Moment, Timer};
use crate::units::Millis;

/// How long requests in flight may go on when the server ends.
const LAST_CALL: Duration = Duration::from_secs(5);

pub(super) struct EngineThread<'a> {
    engine: &'a mut dyn Engine,
    commands: Receiver<Command>,
    metrics: Arc<Metrics>,
    /// Orders that have not ended, by number.
    open: BTreeMap<u64, Open>,
    choices: HashMap<RequestId, Choice>,
    /// Since when the server is ending.
    closing: Option<Timer>,
}

struct Open {
    replies: UnboundedSender<Reply>,
    arrived: Moment,
    /// Choices that have not ended.
    left: Vec<RequestId>,
    /// Held until the order has ended.
    _permit: Permit,
}

struct Choice {
    order: u64,
    index: usize,
    first_token: Option<Millis>,
    began: bool,
    /// Whether text has been passed on, which cannot be taken back.
    said: bool,
}

impl<'a> EngineThread<'a> {
    pub(super) fn new(
        engine: &'a mut dyn Engine,
        commands: Receiver<Command>,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.occupied(engine.occupancy());
        Self {
            engine,
            commands,
            metrics,
            open: BTreeMap::new(),
            choices: HashMap::new(),
            closing: None,
        }
    }

    /// Runs until the server is shut down.
    ///
    /// # Errors
    /// The engine cannot go on, or the connections' thread is gone.
    pub(super) fn run(&mut self) -> Result<()> {
        loop {
            if !self.take_commands()? {
                return Ok(());
            }
            let polled = self.poll();
            self.metrics.occupied(self.engine.occupancy());
            if let Err(error) = polled {
                let reason = error.chain();
                self.abandon(&ApiError::engine(format!(
                    "The engine has failed: {reason}."
                )));
                return Err(error.context("the engine cannot go on"));
            }
        }
    }

    /// Takes the commands that there are, and waits for one while nothing is in flight. False if the server
    /// is to end.
    fn take_commands(&mut self) -> Result<bool> {
        loop {
            if let Some(since) = self.closing
                && (self.open.is_empty() || since.elapsed() >= LAST_CALL)
            {
                self.abandon(&ApiError::closing());
                return Ok(false);
            }
            let command = match self.open.is_empty() {
                true => self.commands.recv().map_err(|_| TryRecvError::Disconnected),
                false => self.commands.try_recv(),
            };
            match command {
                Ok(Command::Start(order)) => self.start(*order)?,
                Ok(Command::Cancel(number)) => self.cancel(number),
                Ok(Command::Shutdown) => {
                    self.closing.get_or_insert_with(Timer::start);
                }
                Err(TryRecvError::Empty) => return Ok(true),
                Err(TryRecvError::Disconnected) => {
                    return Err(Error::new(
                        Exit::Preflight,
                        "the thread that serves connections has ended",
                    ));
                }
            }
            self.metrics.occupied(self.engine.occupancy());
        }
    }

    fn start(&mut self, order: Order) -> Result<()> {
        let Order {
            number,
            mut request,
            seeds,
            replies,
            permit,
        } = order;
        if self.closing.is_some() {
            let _ = replies.send(Reply::Failed(ApiError::closing()));
            return Ok(());
        }
        if replies.is_closed() {
            // The client is gone already.
            (seeds.iter()).for_each(|_| self.metrics.ended(Outcome::Cancelled));
            return Ok(());
        }
        let arrived = Moment::now(self.engine)?;
        let submitted = match seeds.as_slice() {
            [seed] => {
                request.sampling.seed = *seed;
                self.engine.submit(request.clone()).map(|id| vec![id])
            }
            seeds => self.engine.submit_samples(request.clone(), seeds),
        };
        let ids = match submitted {
            Ok(ids) => ids,
            Err(error) => {
                let param = match request.options.plain_prompt {
                    true => "prompt",
                    false => "messages",
                };
                let refused = match self.engine.excess(&request) {
                    Some((tokens, most)) => ApiError::too_long(param, tokens, most),
                    None => ApiError::field(param, "invalid_value", sentence(&error)),
                };
                self.metrics.ended(Outcome::Failed);
                let _ = replies.send(Reply::Failed(refused));
                return Ok(());
            }
        };
        for (index, id) in ids.iter().enumerate() {
            let choice = Choice {
                order: number,
                index,
                first_token: None,
                began: false,
                said: false,
            };
            self.choices.insert(*id, choice);
        }
        let _ = replies.send(Reply::Accepted);
        let open = Open {
            replies,
            arrived,
            left: ids,
            _permit: permit,
        };
        self.open.insert(number, open);
        Ok(())
    }

    fn poll(&mut self) -> Result<()> {
        let events = self.engine.poll()?;
        if events.is_empty() {
            return Ok(());
        }
        let now = Moment::now(self.engine)?;
        for event in events {
            self.pass_on(event, now);
        }
        Ok(())
    }

    fn pass_on(&mut self, Event { id, kind }: Event, now: Moment) {
        let Some(choice) = self.choices.get_mut(&id) else {
            return;
        };
        let number = choice.order;
        let Some(open) = self.open.get_mut(&number) else {
            return;
        };
        let since = now.since(open.arrived);
        match kind {
            EventKind::Started => {
                if !std::mem::replace(&mut choice.began, true) {
                    self.metrics.waited(since);
                }
            }
            EventKind::Token(_) => {
                self.metrics.generated();
                choice.first_token.get_or_insert(since);
            }
            EventKind::Text(text) => {
                choice.said = true;
                let choice = choice.index;
                if open.replies.send(Reply::Text { choice, text }).is_err() {
                    self.cancel(number);
                }
            }
            EventKind::Restarted => {
                choice.first_token = None;
                if choice.said {
                    let broken = "The server behind this one broke off in the middle of the answer, and what \
                                  was streamed cannot be taken back. Ask again.";
                    self.fail(number, ApiError::upstream(broken));
                }
            }
            EventKind::Finished(completion) => {
                self.metrics
                    .finished(&completion, choice.first_token, since);
                let choice = choice.index;
                self.choices.remove(&id);
                open.left.retain(|left| *left != id);
                let is_last = open.left.is_empty();
                // Before the reply, so that whoever has the answer finds the place free.
                let replies = open.replies.clone();
                if is_last {
                    self.open.remove(&number);
                    self.metrics.occupied(self.engine.occupancy());
                }
                let finished = Reply::Finished { choice, completion };
                if replies.send(finished).is_err() {
                    self.cancel(number);
                }
            }
            EventKind::Failed(reason) => {
                let error = match self.engine.info().kind.as_str() {
                    "remote" => ApiError::upstream(reason),
                    _ => ApiError::engine(reason),
                };
                self.metrics.ended(Outcome::Failed);
                self.choices.remove(&id);
                open.left.retain(|left| *left != id);
                self.fail(number, error);
            }
        }
    }

    /// Ends an order with an error.
    fn fail(&mut self, number: u64, error: ApiError) {
        let replies = self.open.get(&number).map(|open| open.replies.clone());
        self.cancel(number);
        if let Some(replies) = replies {
            let _ = replies.send(Reply::Failed(error));
        }
    }

    /// Ends an order without a reply.
    fn cancel(&mut self, number: u64) {
        let Some(open) = self.open.remove(&number) else {
            return;
        };
        for id in open.left {
            self.engine.cancel(id);
            self.choices.remove(&id);
            self.metrics.ended(Outcome::Cancelled);
        }
    }

    fn abandon(&mut self, error: &ApiError) {
        let numbers: Vec<u64> = self.open.keys().copied().collect();
        for number in numbers {
            self.fail(number, error.clone());
        }
    }
}

/// An error of the engine as a message.
fn sentence(error: &Error) -> String {
    let mut text = error.chain();
    if let Some(first) = text.get(..1) {
        let first = first.to_uppercase();
        text.replace_range(..1, &first);
    }
    text.push('.');
    text
}
