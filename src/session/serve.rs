//! An engine behind OpenAI's interface, from its settings to its end.

use std::sync::atomic::AtomicBool;

use super::prepared::Prepared;
use crate::config::ServeConfig;
use crate::engine::LocalEngine;
use crate::error::{Exit, Result};
use crate::flow::ScriptFile;
use crate::report::Console;
use crate::serve;

/// Starts the engine, says where it is served, and serves it until the program is interrupted.
///
/// # Errors
/// Exit code 3 if the address or the engine is not available; any error that ends the engine.
pub(crate) fn serve(
    config: &ServeConfig,
    console: &mut Console,
    interrupted: &'static AtomicBool,
) -> Result<Exit> {
    let settings = &config.engine;
    if settings.is_local() {
        LocalEngine::preflight(settings.device, settings.backend)?;
    }
    let listener = serve::bind(config.server.address)?;
    // A script is named, so the template's own is not looked for.
    let script = ScriptFile {
        path: settings.script.clone().unwrap_or_default(),
        text: None,
    };
    let places = config.server.concurrency;
    let prepared = Prepared::new(settings, places, script, console, interrupted)?;
    console.waiting("Loading the engine");
    let started = prepared.start();
    console.idle();
    let mut engine = started.map_err(|error| error.context("failed to load the engine"))?;
    if let Some(note) = engine.note() {
        console.progress(note);
    }
    let model = engine.info().model.clone();
    serve::serve(
        engine.as_mut(),
        listener,
        &config.server,
        interrupted,
        |address| console.result(&format!("[SERVE] url=http://{address}/v1 model={model}")),
    )?;
    Ok(Exit::Done)
}
