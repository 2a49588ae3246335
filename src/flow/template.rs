//! Templates: found, read and checked, so that what is wrong is known before anything runs.

use std::path::{Path, PathBuf};

use toml::Spanned;

use crate::config::Layout;
use crate::error::{Error, Result};
use crate::hash::PartsHasher;

use super::includes::{self, Includes};
use super::manifest::{self, FixtureKeys};
use super::params::Params;
use super::place::{SourceFile, below, choice, leads_out, names_in, no_file, shown};
use super::request::{ExpandRequest, Input};
use super::rows::{self, Row};
use super::split::Piece;
use super::steps::{StepSource, Steps, steps};
use super::text::{Text, check_name};
use super::unroll::{Instance, unroll};

/// A template that is right as far as can be told without rendering it.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) file: SourceFile,
    pub(super) name: String,
    pub(super) description: Option<String>,
    pub(super) system: Option<Text>,
    pub(super) params: Params,
    /// In an order in which each comes after those that it needs.
    pub(super) steps: Vec<StepSource>,
    /// The steps of a flow: those of loops once a generation.
    pub(super) instances: Vec<Instance>,
    /// The suite's file, where there is one.
    pub(super) suite: Option<PathBuf>,
    /// At least one.
    pub(super) rows: Vec<Row>,
    pub(super) fixture: Option<Spanned<FixtureKeys>>,
    pub(super) includes: Includes,
    /// SHA-256 over the template's file name and content, its suite, and the files it includes.
    pub(super) hash: String,
}

impl Template {
    /// Finds, reads and checks a template: a name in `templates/`, or a path.
    pub(super) fn load(request: &ExpandRequest) -> Result<Self> {
        let file = SourceFile::read(&find(request.layout, request.template)?)?;
        let file = file.with_line_feeds();
        Self::from_file(file, request.params, request.input)
    }

    fn from_file(
        file: SourceFile,
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

        let folder = file.path().parent().unwrap_or(Path::new(""));
        let folder = if folder.as_os_str().is_empty() {
            Path::new(".")
        } else {
            folder
        };
        let suite = match (input, keys.suite) {
            (Some(input), _) => Some(SourceFile::read(input.path)?),
            (None, Some(name)) => Some(read_suite(&file, folder, &name)?),
            (None, None) => None,
        };
        let of_steps = steps.iter().flat_map(|step| &step.texts);
        let texts = system.iter().chain(of_steps);
        let literals = texts.flat_map(Text::literals);
        let includes = includes::collect(folder, literals.map(|literal| literal.text.as_str()))?;
        let hash = hash(&file, suite.as_ref(), &includes, &params, input);
        let rows = match (&suite, input) {
            (Some(suite), Some(input)) => rows::input(suite, input.limit)?,
            (Some(suite), None) => rows::suite(suite)?,
            (None, _) => vec![Row::empty()],
        };
        let instances = unroll(&steps, &loops).map_err(|cycle| {
            let at = file.text().find("[[loop]]").unwrap_or(0);
            let what = format!(
                "generations of loops need each other in a circle: {}",
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

/// The path of a template: a name in `templates/`, or a path.
fn find(layout: &Layout, name: &str) -> Result<PathBuf> {
    let templates = layout.templates();
    let given = PathBuf::from(name);
    let is_path = name.contains('/') || name.ends_with(".toml");
    let candidates = if is_path {
        let in_templates = templates.join(&given);
        // `three_step.toml` is as clear as `three_step`.
        if name.contains('/') {
            vec![given]
        } else {
            vec![given, in_templates]
        }
    } else {
        vec![templates.join(format!("{name}.toml"))]
    };
    if let Some(found) = candidates.iter().find(|path| path.is_file()) {
        return Ok(found.clone());
    }
    if let Some(error) = candidates.iter().find_map(|path| no_file(path)) {
        return Err(
            error.hint("a template is a .toml file: give its path, or its name in templates/")
        );
    }
    let known = names_in(&templates, |path| {
        let is_template = path
            .extension()
            .is_some_and(|extension| extension == "toml");
        is_template.then(|| Some(path.file_stem()?.to_str()?.to_owned()))?
    });
    let stem = Path::new(name).file_stem().and_then(|stem| stem.to_str());
    let what = format!("templates in {}/", shown(&templates));
    let looked_for = candidates.last().map_or(Path::new(name), PathBuf::as_path);
    Err(Error::usage(format!(
        "there is no template `{name}` ({})",
        shown(looked_for)
    ))
    .hint(choice(stem.unwrap_or(name), &what, &known)))
}

fn check_system(file: &SourceFile, system: Option<&Text>) -> Result<()> {
    let Some(system) = system else { return Ok(()) };
    for piece in &system.pieces {
        if let Piece::Expr { offset, .. } = piece {
            return Err(file
                .error(
                    system.in_file(file, *offset),
                    "`system` may not hold a `${…}`: it is complete before the run",
                )
                .hint("put it into a step's prompt; write `$${` for the text `${`"));
        }
    }
    Ok(())
}

fn read_suite(file: &SourceFile, folder: &Path, name: &Spanned<String>) -> Result<SourceFile> {
    let at = name.span().start;
    let path = below(folder, name.get_ref()).ok_or_else(|| {
        file.error(
            at,
            format!(
                "the suite `{}` leads out of the template's folder",
                name.get_ref()
            ),
        )
        .hint("a suite stands beside its template: give its name")
    })?;
    if let Some(error) = no_file(&path) {
        return Err(file
            .error(at, error)
            .hint("a suite is a file of JSON Lines beside its template"));
    }
    if leads_out(folder, &path) {
        let what = format!(
            "the suite `{}` is a link out of the template's folder",
            name.get_ref()
        );
        return Err(file
            .error(at, what)
            .hint("put the file itself beside the template, or give other rows with --input"));
    }
    if !path.is_file() {
        let known = names_in(folder, |path| {
            let name = path.file_name()?.to_str()?;
            name.ends_with(".jsonl").then(|| name.to_owned())
        });
        let what = format!("there is no suite {}", shown(&path));
        return Err(file.error(at, what).hint(choice(
            name.get_ref(),
            "suites beside the template",
            &known,
        )));
    }
    SourceFile::read(&path)
}

fn hash(
    file: &SourceFile,
    suite: Option<&SourceFile>,
    includes: &Includes,
    params: &Params,
    input: Option<Input>,
) -> String {
    let mut hasher = PartsHasher::default();
    // With its name: the same text under another name is another template.
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
