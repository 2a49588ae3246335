//! Expands a template and a fixture into flows, using the cache.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, Exit, Result};

use super::Flow;
use super::cache::{self, CacheState, Key, MissReason, Writer};
use super::fixture::{Fixture, FixtureSize};
use super::lock::FolderLock;
use super::place::create_folder;
use super::render::Renderer;
use super::request::ExpandRequest;
use super::rows::InputRow;
use super::share::{self, PrefixShare};
use super::shipped;
use super::sources::{self, ScriptFile};
use super::template::Template;

/// An expansion that is on disk, or after [`check`] may be.
#[derive(Debug)]
pub struct Expansion {
    pub template: String,
    /// The script of recorded answers that belongs to the template.
    pub script: ScriptFile,
    pub description: Option<String>,
    pub num_flows: usize,
    /// Number of steps per flow.
    pub num_steps: usize,
    /// Number of rows of the suite; flow *i* uses row (*i* − 1) mod rows.
    pub num_rows: usize,
    /// SHA-256 of the template, its suite, and its included files.
    pub template_hash: String,
    /// SHA-256 of the fixture's included files.
    pub fixture_hash: String,
    pub fixture: FixtureSize,
    /// Whether the flows on disk were valid.
    pub state: CacheState,
    /// The flows, if requested. Flows with the same system message share it.
    pub flows: Vec<Flow>,
    sources: Sources,
}

impl Expansion {
    /// The text of the `[PROGRESS]` line, without that prefix.
    pub fn progress_line(&self) -> String {
        match &self.state {
            CacheState::Hit => format!(
                "Using cached expanded flows (fixture_hash={:.8}..., template_hash={:.8}...)",
                self.fixture_hash, self.template_hash
            ),
            CacheState::Miss(reason) => {
                format!("Regenerating expanded flows (cache miss: {reason})")
            }
        }
    }

    /// The template's source.
    pub fn template_text(&self) -> &str {
        self.sources.template.file.text()
    }

    /// The files that the flows were made from, each with a description. Shipped ones have no file.
    pub fn sources(&self) -> Vec<(&'static str, PathBuf)> {
        let Sources {
            template, fixture, ..
        } = &self.sources;
        let mut files = vec![("the template", template.file.path().to_owned())];
        files.extend(template.suite.clone().map(|suite| ("the suite", suite)));
        let includes = template.includes.values();
        files.extend(
            includes.map(|file| ("a file that the template includes", file.path().to_owned())),
        );
        files.extend(
            fixture
                .paths
                .iter()
                .map(|path| ("a file of the fixture", path.clone())),
        );
        files.retain(|(_, path)| !shipped::is_shown_path(path));
        files
    }

    /// The rows of an input, in order; empty if the rows are those of the template's suite.
    pub fn input_rows(&self) -> Vec<InputRow> {
        let rows = self.sources.template.rows.iter();
        let input = rows.filter_map(|row| {
            Some(InputRow {
                line: row.line,
                text: row.text.clone()?,
            })
        });
        input.collect()
    }

    /// Measures prefix sharing; renders every flow once more.
    ///
    /// # Errors
    ///
    /// If the template does not render (only possible after [`check`]).
    pub fn share(&self) -> Result<PrefixShare> {
        let mut renderer = Renderer::new(&self.sources.template, &self.sources.fixture)?;
        share::measure(&mut renderer, self.num_flows)
    }

    /// The flow with number 1, rendered once more.
    pub(super) fn first_flow(&self) -> Result<Flow> {
        Renderer::new(&self.sources.template, &self.sources.fixture)?.flow(1)
    }
}

/// Expands a template into `flows/`, unless the flows there are valid.
///
/// # Errors
///
/// Usage (exit code 2): the template, its suite or its fixture is wrong. Output (110): `flows/` must be
/// written and cannot. Problems with the cache are never errors.
pub fn expand(request: &ExpandRequest) -> Result<Expansion> {
    let sources = Sources::load(request)?;
    let folder = request.layout.flows();
    create_folder(&folder)?;
    let _lock = FolderLock::exclusive(&folder, request.on_wait)?;

    let mut loader = Loader::new(request.load);
    let key = sources.key();
    let mut state = CacheState::Miss(MissReason::Disabled);
    if request.use_cache {
        let name = &sources.template.name;
        state = cache::verify(&folder, key, |number, bytes| {
            loader.take(name, number, bytes)
        });
    }
    match state {
        // Ignore errors: the flows are valid despite surplus files, even in a read-only folder.
        CacheState::Hit => drop(cache::remove_strays(&folder, sources.num_flows)),
        CacheState::Miss(_) => {
            loader = Loader::new(request.load);
            let mut renderer = Renderer::new(&sources.template, &sources.fixture)?;
            let writer = Writer::begin(&folder)?;
            let mut files = Vec::with_capacity(sources.num_flows.min(1 << 20));
            let mut bytes = Vec::new();
            for number in 1..=sources.num_flows {
                (request.proceed)()?;
                let flow = renderer.flow(number)?;
                serialise(&flow, &mut bytes)?;
                files.push(writer.flow(number, &bytes)?);
                loader.keep(flow);
            }
            writer.finish(key, files)?;
        }
    }
    Ok(sources.into_expansion(state, loader.flows))
}

/// Checks whether the flows in `flows/` are valid for the request. Writes and loads nothing.
///
/// # Errors
///
/// Usage (exit code 2): the template, its suite or its fixture is wrong.
pub fn check(request: &ExpandRequest) -> Result<Expansion> {
    let sources = Sources::load(request)?;
    let folder = request.layout.flows();
    let _lock = FolderLock::shared(&folder, request.on_wait)?;
    let name = &sources.template.name;
    let mut loader = Loader::new(false);
    let key = sources.key();
    let state = cache::verify(&folder, key, |number, bytes| {
        loader.take(name, number, bytes)
    });
    Ok(sources.into_expansion(state, Vec::new()))
}

#[derive(Debug)]
struct Sources {
    template: Template,
    fixture: Fixture,
    script: ScriptFile,
    num_flows: usize,
}

impl Sources {
    fn load(request: &ExpandRequest) -> Result<Self> {
        request.layout.check()?;
        if request.num_flows == Some(0) {
            return Err(Error::usage("at least one flow is needed")
                .hint("set NUM_FLOWS to a whole number of at least 1"));
        }
        let template = Template::load(request)?;
        let keys = template.fixture.as_ref();
        let fixture = Fixture::load(request.layout, &template.file, keys)?;
        let num_flows = match request.input {
            Some(input) => template.rows.len() * input.repeats,
            None => request.num_flows.unwrap_or(template.rows.len()),
        };
        Ok(Self {
            script: sources::script(request.layout, &template.file),
            template,
            fixture,
            num_flows,
        })
    }

    fn key(&self) -> Key<'_> {
        Key {
            fixture_hash: &self.fixture.hash,
            template_hash: &self.template.hash,
            num_flows: self.num_flows,
        }
    }

    fn into_expansion(self, state: CacheState, flows: Vec<Flow>) -> Expansion {
        Expansion {
            template: self.template.name.clone(),
            script: self.script.clone(),
            description: self.template.description.clone(),
            num_flows: self.num_flows,
            num_steps: self.template.instances.len(),
            num_rows: self.template.rows.len(),
            template_hash: self.template.hash.clone(),
            fixture_hash: self.fixture.hash.clone(),
            fixture: self.fixture.size,
            state,
            flows,
            sources: self,
        }
    }
}

/// Serializes a flow as JSON, indented for readability.
fn serialise(flow: &Flow, bytes: &mut Vec<u8>) -> Result<()> {
    bytes.clear();
    serde_json::to_writer_pretty(&mut *bytes, flow).map_err(|error| {
        Error::new(Exit::Output, format!("failed to write flow {}", flow.flow)).caused_by(error)
    })?;
    bytes.push(b'\n');
    Ok(())
}

/// Collects flows in memory if requested, storing each distinct system message once.
struct Loader {
    wanted: bool,
    flows: Vec<Flow>,
    systems: HashSet<Arc<str>>,
}

impl Loader {
    fn new(wanted: bool) -> Self {
        Self {
            wanted,
            flows: Vec::new(),
            systems: HashSet::new(),
        }
    }

    /// Reads a file whose digest is right; `None` if it is not the expected flow all the same (a forged
    /// digest).
    fn take(&mut self, template: &str, number: usize, bytes: &[u8]) -> Option<()> {
        if self.wanted {
            let flow: Flow = serde_json::from_slice(bytes).ok()?;
            if flow.flow != number || flow.template != template {
                return None;
            }
            self.keep(flow);
        }
        Some(())
    }

    fn keep(&mut self, mut flow: Flow) {
        if !self.wanted {
            return;
        }
        if let Some(system) = &mut flow.system {
            match self.systems.get(system) {
                Some(known) => *system = Arc::clone(known),
                None => drop(self.systems.insert(Arc::clone(system))),
            }
        }
        self.flows.push(flow);
    }
}
