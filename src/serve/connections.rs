//! The thread that serves connections, on a runtime of its own.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::order::Command;
use super::router::Shared;
use super::timed::TimedStream;

/// How long the head of a request may take to arrive, and a connection may be idle between requests.
const HEAD_TIME: Duration = Duration::from_secs(75);

/// How long a client may read nothing while it is sent something.
const WRITE_TIME: Duration = Duration::from_secs(60);

/// Most bytes of a request's head.
const HEAD_BYTES: usize = 64 << 10;

/// Most header fields of a request.
const HEADERS: usize = 100;

/// How often it is looked whether the program was interrupted.
const LOOK: Duration = Duration::from_millis(100);

/// How long the last responses may take.
const FAREWELL: Duration = Duration::from_secs(2);

/// How long to wait after a failed accept: probably out of file descriptors.
const BREATH: Duration = Duration::from_millis(50);

pub(super) struct Connections {
    pub(super) listener: TcpListener,
    pub(super) router: Router,
    pub(super) shared: Arc<Shared>,
    /// Most open connections; more wait to be accepted.
    pub(super) most: usize,
}

impl Connections {
    /// Serves until the engine's thread has ended (`ended`). On an interrupt, accepts nothing more and tells
    /// the engine's thread.
    pub(super) async fn run(
        self,
        interrupted: &AtomicBool,
        mut ended: oneshot::Receiver<()>,
    ) -> std::io::Result<()> {
        let listener = tokio::net::TcpListener::from_std(self.listener)?;
        let places = Arc::new(Semaphore::new(self.most));
        let (close, closing) = watch::channel(());
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let accept = || async {
            // The semaphore is never closed.
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            match listener.accept().await {
                Ok((stream, _)) => Some((stream, place)),
                Err(_) => {
                    tokio::time::sleep(BREATH).await;
                    None
                }
            }
        };
        let has_ended = loop {
            tokio::select! {
                _ = look.tick() => {
                    if interrupted.load(Ordering::Relaxed) {
                        let _ = self.shared.commands.send(Command::Shutdown);
                        break false;
                    }
                }
                _ = &mut ended => break true,
                accepted = accept() => if let Some((stream, place)) = accepted {
                    let router = self.router.clone();
                    let shared = Arc::clone(&self.shared);
                    tokio::spawn(connection(stream, router, shared, closing.clone(), place));
                },
            }
        };
        drop(listener);
        if !has_ended {
            let _ = ended.await;
        }
        drop(close);
        let all = u32::try_from(self.most).unwrap_or(u32::MAX);
        // Those that are not done by then are cut off.
        let _ = timeout(FAREWELL, places.acquire_many(all)).await;
        Ok(())
    }
}

async fn connection(
    stream: TcpStream,
    router: Router,
    shared: Arc<Shared>,
    mut closing: watch::Receiver<()>,
    _place: OwnedSemaphorePermit,
) {
    shared.metrics.connections.inc();
    // Tokens are small, and must not wait for more.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(TimedStream::new(stream, WRITE_TIME));
    let mut served = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .max_headers(HEADERS)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(stream, TowerToHyperService::new(router))
    );
    // A connection that breaks is the client's affair.
    tokio::select! {
        _ = served.as_mut() => {}
        _ = closing.changed() => {
            served.as_mut().graceful_shutdown();
            let _ = served.await;
        }
    }
    shared.metrics.connections.dec();
}
