//! What an engine is started from: found, downloaded and read before the clock runs.

use std::sync::atomic::AtomicBool;

use crate::config::{EndpointApi, EngineSettings, RemoteConfig};
use crate::engine::{
    Engine, LocalEngine, LocalOptions, ModelFile, RemoteEngine, Script, ScriptedEngine,
    wait_until_ready,
};
use crate::error::Result;
use crate::flow::ScriptFile;
use crate::profile::{self, Span};
use crate::report::Console;

pub(super) enum Prepared {
    Local(ModelFile, LocalOptions),
    Scripted {
        script: Script,
        /// Whether to wait for the recorded latencies.
        timed: bool,
    },
    Remote {
        config: Box<RemoteConfig>,
        model: Option<String>,
        max_requests: usize,
    },
}

impl Prepared {
    /// `script` is the template's own script, for a run that names none. At most `max_requests` are
    /// in flight at once.
    pub(super) fn new(
        config: &EngineSettings,
        max_requests: usize,
        script: ScriptFile,
        console: &mut Console,
        interrupted: &AtomicBool,
    ) -> Result<Self> {
        let _span = profile::span(Span::LocateModel);
        if config.scripted {
            let script = match (&config.script, &script.text) {
                (Some(path), _) => Script::read(path)?,
                (None, Some(text)) => Script::parse(text, &script.path.display().to_string())?,
                (None, None) => Script::read(&script.path)?,
            };
            return Ok(Self::Scripted {
                script,
                timed: config.script_latency,
            });
        }
        if let Some(remote) = &config.remote {
            announce(remote, console);
            wait_until_ready(remote, interrupted, &mut |text| console.progress(text))?;
            return Ok(Self::Remote {
                config: Box::new(remote.clone()),
                model: config.model_files.model.clone(),
                max_requests,
            });
        }
        let options = LocalOptions {
            device: config.device,
            backend: config.backend,
            gpu: config.gpu,
            max_sequences: max_requests,
            reuse: config.reuse,
            kv_bytes: config.kv_cache_bytes,
            context: config.context,
            speculate: config.speculate,
        };
        let model = super::model::locate(&config.model_files, console, interrupted)?;
        console.progress(&format!("Model {}", model.path.display()));
        Ok(Self::Local(model, options))
    }

    pub(super) fn start(&self) -> Result<Box<dyn Engine>> {
        match self {
            Self::Local(model, options) => Ok(Box::new(LocalEngine::load(model, options)?)),
            Self::Scripted { script, timed } => {
                Ok(Box::new(ScriptedEngine::new(script.clone(), *timed)))
            }
            Self::Remote {
                config,
                model,
                max_requests,
            } => {
                let engine = RemoteEngine::connect(config, model.as_deref(), *max_requests)?;
                Ok(Box::new(engine))
            }
        }
    }
}

/// Says which server is used, and by which proxy.
fn announce(remote: &RemoteConfig, console: &mut Console) {
    console.progress(&format!("Endpoint {}", remote.server.endpoint));
    if remote.endpoint_api == EndpointApi::Completions && remote.server.tokenizer.is_none() {
        console.warning(
            "warning: without TOKENIZER, prompts are sent as text: where a message spells a \
             special token, the server may take it for one",
        );
    }
    if let Some(proxy) = &remote.server.proxy {
        console.progress(&format!("Proxy {proxy} ({})", proxy.variable));
    }
}
