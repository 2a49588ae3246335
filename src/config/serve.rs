//! Settings of `flowbench serve`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Backend, DeviceChoice, GpuSettings, ModelConfig, RemoteConfig};

/// What an engine is started from.
#[derive(Debug, Clone)]
pub struct EngineSettings {
    /// Whether recorded answers take the place of a model.
    pub scripted: bool,
    /// The recorded answers; `None`: those beside the template.
    pub script: Option<PathBuf>,
    /// Whether to wait for the recorded latencies.
    pub script_latency: bool,
    /// The server that takes the place of a model.
    pub remote: Option<RemoteConfig>,
    pub model_files: ModelConfig,
    pub device: DeviceChoice,
    pub backend: Backend,
    pub gpu: GpuSettings,
    /// Whether prefixes are kept from request to request.
    pub reuse: bool,
    /// Memory for keys and values in bytes; by default the engine decides.
    pub kv_cache_bytes: Option<usize>,
    /// Tokens of a sequence, at most; by default the model's context.
    pub context: Option<usize>,
    pub speculate: bool,
}

impl EngineSettings {
    /// Whether the model runs in this process.
    pub fn is_local(&self) -> bool {
        !self.scripted && self.remote.is_none()
    }
}

/// What the server allows its clients.
#[derive(Clone)]
pub struct ServerSettings {
    /// Port 0 is any free one.
    pub address: SocketAddr,
    /// `None`: any key will do.
    pub api_key: Option<String>,
    /// Names in the `Host` header besides localhost and IP addresses.
    pub allow_hosts: Vec<String>,
    /// Other names of the model.
    pub aliases: Vec<String>,
    /// Choices that are generated at once.
    pub concurrency: usize,
    /// Choices that wait beside them.
    pub max_queue: usize,
    /// Tokens of an answer, for requests that do not say; `None`: as many as fit.
    pub max_tokens: Option<usize>,
    /// Bytes of a request's body, at most.
    pub max_body: usize,
    /// Seeds of requests without one are made from it.
    pub seed: u64,
}

/// Settings of `flowbench serve`.
#[derive(Clone)]
pub struct ServeConfig {
    pub engine: EngineSettings,
    pub server: ServerSettings,
    pub quiet: bool,
}
