//! Templates: found, parsed and validated before anything runs.

use std::path::{Path, PathBuf};

use toml::Spanned;

use crate::error::Result;
use crate::hash::PartsHasher;

use super::includes::{self, Includes};
use super::manifest::{self, FixtureKeys};
use super::params::Params;
use super::place::{SourceFile, below, choice, closest, no_file, shown};
use super::request::{ExpandRequest, Input};
use super::rows::{self, Row};
use super::sources::{self, Found, SearchPath};
use super::split::Piece;
use super::steps::{StepSource, Steps, steps};
use super::text::{Text, check_name};
use super::unroll::{Instance, unroll};

/// A template that is valid as far as can be checked without rendering it.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) file: SourceFile,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) system: Option<Text>,
    pub(super) params: Params,
    /// In topological order.
    pub(super) steps: Vec<StepSource>,
    /// The steps of a flow: steps of a loop occur once per generation.
    pub(super) instances: Vec<Instance>,
    pub(super) suite: Option<PathBuf>,
    /// Never empty.
    pub(super) rows: Vec<Row>,
    pub(super) fixture: Option<Spanned<FixtureKeys>>,
    pub(super) includes: Includes,
    /// SHA-256 of the template's file name and content, its suite, and its included files.
    pub(super) hash: String,
}

impl Template {
    /// Finds, parses and validates a template: a name in `templates/`, or a path.
    pub(super) fn load(request: &ExpandRequest) -> Result<Self> {
        let file = sources::template(request.layout, request.template)?.with_line_feeds();
        let search = SearchPath::of_template(request.layout, &file);
        Self::from_file(file, &search, request.params, request.input)
    }

    fn from_file(
        file: SourceFile,
        search: &SearchPath,
        params: &[(String, String)],
        input: Option<Input>,
    ) -> Result<Self> {
        let keys = manifest::parse(&file)?;
        check_name(&file, &keys.name, "name")?;
        let system = keys.system.as_ref().map(|text| Text::new(&file, text));
        let system = system.transpose()?;
        check_system(&file, system.as_ref())?;
        let params = Params::new(&file, keys.params, params)?;
        let Steps {
            sources: steps,
            loops,
        } = steps(&file, keys.step, keys.r#loop, &params)?;

        let suite = match (input, keys.suite) {
            (Some(input), _) => Some(SourceFile::read(input.path)?),
            (None, Some(name)) => Some(read_suite(&file, search, &name)?),
            (None, None) => None,
        };
        let of_steps = steps.iter().flat_map(|step| &step.texts);
        let texts = system.iter().chain(of_steps);
        let literals = texts.flat_map(Text::literals);
        let includes = includes::collect(search, literals.map(|literal| literal.text.as_str()))?;
        let hash = hash(&file, suite.as_ref(), &includes, &params, input);
        let rows = match (&suite, input) {
            (Some(suite), Some(input)) => rows::input(suite, input.limit)?,
            (Some(suite), None) => rows::suite(suite)?,
            (None, _) => vec![Row::empty()],
        };
        let instances = unroll(&steps, &loops).map_err(|cycle| {
            let at = file.text().find("[[loop]]").unwrap_or(0);
            let what = format!(
                "dependency cycle between loop generations: {}",
                cycle.join(" -> ")
            );
            file.error(at, what).hint(
                "an arrow points from a step to one that it needs; outside of a loop, a step of it is that \
                 of its last generation",
            )
        })?;
        Ok(Self {
            name: keys.name.into_inner(),
            description: keys.description,
            system,
            params,
            instances,
            steps,
            suite: suite.map(|suite| suite.path().to_owned()),
            rows,
            fixture: keys.fixture,
            includes,
            hash,
            file,
        })
    }
}

fn check_system(file: &SourceFile, system: Option<&Text>) -> Result<()> {
    let Some(system) = system else { return Ok(()) };
    for piece in &system.pieces {
        if let Piece::Expr { offset, .. } = piece {
            return Err(file
                .error(
                    system.in_file(file, *offset),
                    "`system` cannot contain `${…}`: it is rendered before the run",
                )
                .hint("put it into a step's prompt; write `$${` for the text `${`"));
        }
    }
    Ok(())
}

fn read_suite(
    file: &SourceFile,
    search: &SearchPath,
    name: &Spanned<String>,
) -> Result<SourceFile> {
    let at = name.span().start;
    let name = name.get_ref();
    if below(Path::new(""), name).is_none() {
        let what = format!("the suite `{name}` is outside of the template's folder");
        return Err(file
            .error(at, what)
            .hint("a suite is in the folder of its template: give its file name"));
    }
    match search.file(name)? {
        Found::File(suite) => Ok(suite),
        Found::LeadsOut(path) => {
            let what = format!(
                "the suite {} is a symlink to outside its folder",
                shown(&path)
            );
            Err(file
                .error(at, what)
                .hint("put the file itself beside the template, or give other rows with --input"))
        }
        Found::Other(path) => match no_file(&path) {
            Some(error) => Err(file
                .error(at, error)
                .hint("a suite is a file of JSON Lines beside its template")),
            // It became one since.
            None => SourceFile::read(&path),
        },
        Found::Nothing => {
            let is_rows = |path: &Path| path.extension().is_some_and(|kind| kind == "jsonl");
            // Nobody wants to choose among the shipped suites, but one may be meant.
            let is_near = |known: &&str| closest(name, &[*known]).is_some();
            let of_suite = |known: &str| Some(known).filter(is_near).map(str::to_owned);
            let known = search.names(name, is_rows, of_suite);
            let what = format!(
                "there is no suite `{name}` (searched: {})",
                search.searched()
            );
            Err(file.error(at, what).hint(choice(name, "suites", &known)))
        }
    }
}

fn hash(
    file: &SourceFile,
    suite: Option<&SourceFile>,
    includes: &Includes,
    params: &Params,
    input: Option<Input>,
) -> String {
    let mut hasher = PartsHasher::default();
    // Includes the file name: the same text under another name is another template.
    let name = file.path().file_name().unwrap_or_default();
    hasher.part(name.as_encoded_bytes());
    hasher.part(file.text().as_bytes());
    hasher.part(suite.map_or("", SourceFile::text).as_bytes());
    for (name, include) in includes {
        hasher.part(name.as_bytes());
        hasher.part(include.text().as_bytes());
    }
    params.hash(&mut hasher);
    if let Some(input) = input {
        hasher.part(format!("input, limit {:?}", input.limit).as_bytes());
    }
    hasher.finish()
}
