//! What passes between the connections and the engine's thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use tokio::sync::mpsc::UnboundedSender;

use super::errors::ApiError;
use crate::engine::{Completion, Request};

/// To the engine's thread.
#[derive(Debug)]
pub(super) enum Command {
    Start(Box<Order>),
    /// The client is gone.
    Cancel(u64),
    /// Accept nothing more, and end.
    Shutdown,
}

/// A request of a client.
#[derive(Debug)]
pub(super) struct Order {
    pub(super) number: u64,
    pub(super) request: Request,
    /// One choice for each.
    pub(super) seeds: Vec<u64>,
    /// Never blocks the engine: what a client does not read is kept, which an answer's `max_tokens` bounds.
    pub(super) replies: UnboundedSender<Reply>,
    pub(super) permit: Permit,
}

/// From the engine's thread.
#[derive(Debug)]
pub(super) enum Reply {
    /// The engine has queued the request.
    Accepted,
    /// The request, or the choice that failed first, has failed; no further replies come.
    Failed(ApiError),
    /// Text of a choice, if texts are streamed.
    Text { choice: usize, text: String },
    Finished {
        choice: usize,
        completion: Completion,
    },
}

/// The limit on choices that are being generated or wait.
#[derive(Debug, Clone)]
pub(super) struct Queue {
    held: Arc<AtomicUsize>,
    most: usize,
}

/// Places in the queue, which are free again when it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    held: Arc<AtomicUsize>,
    places: usize,
}

impl Queue {
    pub(super) fn new(most: usize) -> Self {
        Self {
            held: Arc::default(),
            most,
        }
    }

    /// Takes `places` places; a request with more choices than the queue has may have it alone.
    ///
    /// # Errors
    /// The number of places that are taken, if there are too few.
    pub(super) fn enter(&self, places: usize) -> Result<Permit, usize> {
        let more = |held: usize| {
            let fits = held == 0 || held.saturating_add(places) <= self.most;
            fits.then_some(held.saturating_add(places))
        };
        (self.held)
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map(|_| Permit {
                held: Arc::clone(&self.held),
                places,
            })
    }

    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.held.fetch_sub(self.places, Ordering::Relaxed);
    }
}

/// Cancels an order when it is dropped: the client has closed its connection.
#[derive(Debug)]
pub(super) struct CancelOnDrop {
    number: u64,
    commands: Option<Sender<Command>>,
}

impl CancelOnDrop {
    pub(super) fn new(number: u64, commands: Sender<Command>) -> Self {
        Self {
            number,
            commands: Some(commands),
        }
    }

    /// The order has ended.
    pub(super) fn disarm(&mut self) {
        self.commands = None;
    }
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(commands) = self.commands.take() {
            // The engine's thread may have ended, and the order with it.
            let _ = commands.send(Command::Cancel(self.number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_free_again_when_a_permit_is_dropped() {
        let queue = Queue::new(3);
        let two = queue.enter(2).expect("room");
        assert_eq!(queue.enter(2).err(), Some(2));
        let one = queue.enter(1).expect("room");
        drop(two);
        assert_eq!(queue.held(), 1);
        drop(one);
        // More choices than places: alone.
        let many = queue.enter(9).expect("alone");
        assert!(queue.enter(1).is_err());
        drop(many);
        assert_eq!(queue.held(), 0);
    }
}
