//! `flowbench serve`: an engine behind OpenAI's HTTP interface.
//!
//! ```text
//! connections (a thread, tokio) ─► router ─► access, wire ─► Order ─┐ channel
//!                                  stream, answers ◄─ Reply ◄───────┤ a channel per request
//!                                        engine_thread (polls the engine) ◄┘
//! ```
//!
//! The engine's thread never waits for a connection: replies go to a channel that holds as much as an answer
//! has (`max_tokens`). It sleeps on its own channel while nothing is in flight.

mod access;
mod answers;
mod connections;
mod engine_thread;
mod errors;
mod fields;
mod metrics;
mod order;
mod router;
mod stream;
mod timed;
mod wire;

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::mpsc::channel;

use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::config::ServerSettings;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::open_files;

use access::Access;
use connections::Connections;
use engine_thread::EngineThread;
use metrics::Metrics;
use order::Queue;
use router::{Shared, router, unix_seconds};

/// Most open connections, if the limit of open files allows them.
const MOST_CONNECTIONS: usize = 4096;

/// Takes an address, before the model is loaded.
///
/// # Errors
/// Exit code 3 if the address is not available.
pub fn bind(address: SocketAddr) -> Result<TcpListener> {
    let failed = |source: std::io::Error| {
        Error::preflight(format!("failed to listen at {address}"))
            .hint("set --addr to an address of this machine with a free port; port 0 picks one")
            .caused_by(source)
    };
    let listener = TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(listener)
}

/// Serves the engine until the program is interrupted: polls the engine on this thread, and serves
/// connections on another. `ready` is called once requests are accepted, with the address.
///
/// # Errors
/// Exit code 3 if the server cannot be started; any error of the engine that ends it; an error of `ready`.
pub fn serve(
    engine: &mut dyn Engine,
    listener: TcpListener,
    settings: &ServerSettings,
    interrupted: &'static AtomicBool,
    ready: impl FnOnce(SocketAddr) -> Result<()>,
) -> Result<()> {
    let failed =
        |source: std::io::Error| Error::preflight("failed to start the server").caused_by(source);
    let address = listener.local_addr().map_err(failed)?;
    let (commands, receiver) = channel();
    let metrics = Arc::new(Metrics::new());
    let shared = Arc::new(Shared {
        access: Access {
            key: settings.api_key.clone(),
            hosts: (settings.allow_hosts.iter())
                .map(|host| host.to_ascii_lowercase())
                .collect(),
        },
        model: engine.info().model.clone(),
        aliases: settings.aliases.clone(),
        takes_text: engine.takes_text(),
        max_tokens: settings.max_tokens,
        seed: settings.seed,
        max_body: settings.max_body,
        started: unix_seconds(),
        queue: Queue::new(settings.concurrency.saturating_add(settings.max_queue)),
        metrics: Arc::clone(&metrics),
        commands,
        numbers: AtomicU64::new(1),
    });
    let connections = Connections {
        listener,
        router: router(Arc::clone(&shared)),
        shared,
        // The rest is for the engine.
        most: (open_files::limit() / 2).clamp(8, MOST_CONNECTIONS),
    };
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(failed)?;
    let (end, ended) = oneshot::channel();
    let thread = std::thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            let served = runtime.block_on(connections.run(interrupted, ended));
            runtime.shutdown_background();
            served
        })
        .map_err(failed)?;
    let polled = ready(address).and_then(|()| EngineThread::new(engine, receiver, metrics).run());
    let _ = end.send(());
    match thread.join() {
        Ok(served) => polled.and(served.map_err(failed)),
        Err(_) => polled.and(Err(Error::preflight("the server's thread has panicked"))),
    }
}
