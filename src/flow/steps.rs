//! A template's steps and loops: validated one by one and together, and put in order.

use std::collections::{BTreeSet, HashMap, HashSet};

use toml::Spanned;

use crate::error::{Error, Result};

use super::expression::{Known, Resolver, StepNames, Wrong};
use super::graph::{Ancestry, Graph};
use super::loops::{Loop, PREVIOUS, loops_of};
use super::manifest::{Extraction, HowKeys, HowSettings, Kind, LoopKeys, StepKeys, ToleranceKeys};
use super::params::Params;
use super::place::{SourceFile, choice};
use super::split::Piece;
use super::text::{Text, check_name};
use super::visible::Fields;
use super::work::{Context, Evaluate, Generate, How, Judge, Select, Task, Verify, Work};

/// Upper bound on samples, generations and kept results; a larger number is probably a typo.
const MOST: usize = 10_000;

/// Default time limit of a program (ms).
const DEFAULT_TIMEOUT_MS: usize = 10_000;

/// A step of the template.
#[derive(Debug)]
pub(super) struct StepSource {
    pub(super) id: String,
    /// Steps of the template, and `previous` in a loop.
    pub(super) needs: Vec<String>,
    /// The work, with its texts empty.
    pub(super) work: Work,
    /// The texts: the prompt, or the question and the expected answer.
    pub(super) texts: Vec<Text>,
}

/// All steps of a template in topological order, and its loops.
#[derive(Debug)]
pub(super) struct Steps {
    pub(super) sources: Vec<StepSource>,
    pub(super) loops: Vec<Loop>,
}

/// Validates the steps one by one and together, and puts them in order.
pub(super) fn steps(
    file: &SourceFile,
    keys: Vec<StepKeys>,
    loops: Vec<LoopKeys>,
    params: &Params,
) -> Result<Steps> {
    if keys.is_empty() {
        return Err(file
            .error(file.text().len(), "the template has no steps")
            .hint("add one: [[step]], id = \"answer\", prompt = \"…\""));
    }
    let mut seen = BTreeSet::new();
    for step in &keys {
        check_name(file, &step.id, "step's id")?;
        if step.id.get_ref() == PREVIOUS {
            return Err(file
                .error(step.id.span().start, "no step can be called `previous`")
                .hint("in a loop, `previous` is the result of the preceding generation"));
        }
        if !seen.insert(step.id.get_ref()) {
            let what = format!("duplicate step id `{}`", step.id.get_ref());
            return Err(file
                .error(step.id.span().start, what)
                .hint("step ids must be unique"));
        }
        step.check_keys(file)?;
    }
    let ids = Ids::new(&keys);
    let loops = read_loops(file, &loops, &ids, params)?;
    let all = StepChecker {
        file,
        keys: &keys,
        ids: &ids,
        loops: &loops,
        loop_of: loops_of(&loops, keys.len()),
    };
    let graph = all.graph()?;
    let order = graph.order().map_err(|cycle| {
        let names: Vec<&str> = cycle.iter().map(|step| ids.list[*step]).collect();
        let what = format!("dependency cycle between steps: {}", names.join(" -> "));
        file.error(keys[cycle[0]].needs.span().start, what).hint(
            "an arrow points from a step to one that it needs: remove one of these dependencies",
        )
    })?;
    if let Some(step) = graph.isolated().first() {
        let what = format!(
            "the step `{}` is not connected to any other",
            ids.list[*step]
        );
        return Err(file
            .error(keys[*step].id.span().start, what)
            .hint("connect it through `needs`, or move it to a separate template"));
    }
    all.check_loops(&graph, &order)?;
    let ancestry = Ancestry::new(&graph, &order);
    let resolver = Resolver::new();
    let mut sources = Vec::with_capacity(order.len());
    for &index in &order {
        let known = |name: &str| all.known(&ancestry, index, name);
        let names = all.names(index, &known);
        let check = |source: &str| resolver.check(source, &names);
        sources.push(all.step(index, params, check)?);
    }
    let mut places = vec![0; order.len()];
    for (place, index) in order.iter().enumerate() {
        places[*index] = place;
    }
    let place = |step: usize| places[step];
    let loops = loops.iter().map(|of| Loop {
        generations: of.generations,
        steps: of.steps.iter().map(|step| place(*step)).collect(),
        start: place(of.start),
        carry: place(of.carry),
    });
    Ok(Steps {
        loops: loops.collect(),
        sources,
    })
}

/// The ids of the steps in the order of the file, and their indices.
struct Ids<'a> {
    list: Vec<&'a str>,
    places: HashMap<&'a str, usize>,
}

impl<'a> Ids<'a> {
    fn new(keys: &'a [StepKeys]) -> Self {
        let list: Vec<&str> = keys.iter().map(|step| step.id.get_ref().as_str()).collect();
        let places = list.iter().copied().zip(0..).collect();
        Self { list, places }
    }

    fn find(&self, id: &str) -> Option<usize> {
        self.places.get(id).copied()
    }
}

/// Validates the loops. Steps are indices in the order of the file.
fn read_loops(
    file: &SourceFile,
    keys: &[LoopKeys],
    ids: &Ids,
    params: &Params,
) -> Result<Vec<Loop>> {
    let find = |name: &Spanned<String>, key: &str| {
        find_step(file, ids, name.get_ref(), key, name.span().start)
    };
    let mut loops: Vec<Loop> = Vec::with_capacity(keys.len());
    let mut taken = HashSet::new();
    for key in keys {
        let generations = params.count(file, Some(&key.generations), "generations", 1, MOST)?;
        let mut steps = BTreeSet::new();
        for name in key.steps.get_ref() {
            let step = find(name, "steps")?;
            steps.insert(step);
            if !taken.insert(step) {
                let what = format!("`{}` occurs twice in loops", name.get_ref());
                return Err(file
                    .error(name.span().start, what)
                    .hint("a step can be in at most one loop, and only once"));
            }
        }
        let start = find(&key.start, "start")?;
        if steps.contains(&start) {
            let what = format!(
                "the loop starts from `{}`, which is in the loop",
                key.start.get_ref()
            );
            return Err(file.error(key.start.span().start, what).hint(
                "`start` is a step before the loop, from which the first generation starts",
            ));
        }
        let carry = find(&key.carry, "carry")?;
        if !steps.contains(&carry) {
            let what = format!("`{}` is not a step of the loop", key.carry.get_ref());
            return Err(file
                .error(key.carry.span().start, what)
                .hint("`carry` is the step of the loop that the next generation starts from"));
        }
        loops.push(Loop {
            generations,
            steps,
            start,
            carry,
        });
    }
    Ok(loops)
}

/// Finds the step `name`, which is used in `key` at byte `at`.
fn find_step(file: &SourceFile, ids: &Ids, name: &str, key: &str, at: usize) -> Result<usize> {
    ids.find(name).ok_or_else(|| {
        let what = format!("unknown step `{name}` in `{key}`");
        file.error(at, what).hint(choice(name, "steps", &ids.list))
    })
}

struct StepChecker<'a> {
    file: &'a SourceFile,
    keys: &'a [StepKeys],
    ids: &'a Ids<'a>,
    loops: &'a [Loop],
    /// The index of each step's loop.
    loop_of: Vec<Option<usize>>,
}

impl<'a> StepChecker<'a> {
    fn loop_of(&self, step: usize) -> Option<&'a Loop> {
        self.loop_of[step].map(|number| &self.loops[number])
    }

    /// The dependencies: through `needs`, through `of`, and on the start of the step's loop.
    fn graph(&self) -> Result<Graph> {
        let mut graph = Vec::with_capacity(self.keys.len());
        for (index, step) in self.keys.iter().enumerate() {
            let mut needs = Vec::new();
            let mut seen = HashSet::new();
            for need in step.needs.get_ref() {
                let at = need.span().start;
                let needed = self.needed(index, need.get_ref(), "needs", at)?;
                if !seen.insert(needed) {
                    let what = format!("`{}` occurs twice in `needs`", need.get_ref());
                    return Err(self.file.error(at, what).hint("list it once"));
                }
                needs.push(needed);
            }
            if let Some(of) = &step.of {
                for name in of.get_ref().list() {
                    let needed = self.needed(index, name, "of", of.span().start)?;
                    if seen.insert(needed) {
                        needs.push(needed);
                    }
                }
            }
            if let Some(of) = self.loop_of(index)
                && !needs.iter().any(|need| of.steps.contains(need))
                && !seen.contains(&of.start)
            {
                needs.push(of.start);
            }
            graph.push(needs);
        }
        Ok(Graph::new(graph))
    }

    /// The step that `name` refers to in a key of step `index`.
    fn needed(&self, index: usize, name: &str, key: &str, at: usize) -> Result<usize> {
        if name == PREVIOUS {
            return match self.loop_of(index) {
                Some(of) => Ok(of.start),
                None => Err(self
                    .file
                    .error(
                        at,
                        format!(
                            "`{}` is not in a loop, so it has no `previous`",
                            self.ids.list[index]
                        ),
                    )
                    .hint("`previous` is the result of the preceding generation; name a step")),
            };
        }
        find_step(self.file, self.ids, name, key, at)
    }

    /// Rejects a step outside a loop that lies on a path between two of its steps: it would have to run in
    /// each generation.
    fn check_loops(&self, graph: &Graph, order: &[usize]) -> Result<()> {
        // If each loop is merged into one node, such a step is on a cycle. Usually there is no cycle at all.
        let mut groups = self.loops.len();
        let group_of = self.loop_of.iter().map(|number| {
            number.unwrap_or_else(|| {
                groups += 1;
                groups - 1
            })
        });
        let group_of: Vec<usize> = group_of.collect();
        if graph.joined(&group_of, groups).order().is_ok() {
            return Ok(());
        }
        for of in self.loops {
            let in_loop = |step: usize| of.steps.contains(&step);
            if let Some(between) = graph.between(in_loop, order).first() {
                let what = format!(
                    "`{}` is between steps of a loop, but is not in it",
                    self.ids.list[*between]
                );
                return Err(self
                    .file
                    .error(self.keys[*between].id.span().start, what)
                    .hint("add it to the loop's `steps`"));
            }
        }
        // The loops depend on each other. That may be fine: it depends on what they carry over.
        Ok(())
    }

    /// The fields of a step that expressions can read.
    fn fields(&self, step: usize) -> Fields {
        match self.keys[step].kind() {
            Kind::Generate => Fields::Answers,
            _ => Fields::Scored,
        }
    }

    /// What the expressions of step `index` can read of the step `name`.
    fn known(&self, ancestry: &Ancestry, index: usize, name: &str) -> Known {
        match self.ids.find(name) {
            None => Known::Nothing,
            Some(step) if ancestry.needs(index, step) => Known::Readable(self.fields(step)),
            Some(_) => Known::Unneeded,
        }
    }

    fn names<'b>(&'b self, index: usize, known: &'b dyn Fn(&str) -> Known) -> StepNames<'b> {
        StepNames {
            own: self.ids.list[index],
            known,
            all: &self.ids.list,
            previous: self
                .loop_of(index)
                .map(|of| self.fields(of.start).min(self.fields(of.carry))),
        }
    }

    fn step(
        &self,
        index: usize,
        params: &Params,
        check: impl Fn(&str) -> Result<(), Wrong>,
    ) -> Result<StepSource> {
        let (file, keys) = (self.file, &self.keys[index]);
        let mut needs: Vec<String> = (keys.needs.get_ref().iter())
            .map(|need| need.get_ref().clone())
            .collect();
        let work = self.work(index, params)?;
        if let Work::Generate(generate) = &work
            && generate.context == Context::Append
        {
            self.check_append(keys, params)?;
        }
        let named: HashSet<String> = needs.iter().cloned().collect();
        needs.extend(work.of().iter().filter(|id| !named.contains(*id)).cloned());
        let of_kind: &[(&str, Option<&Spanned<String>>)] = match keys.kind() {
            Kind::Generate => &[("prompt", keys.prompt.as_ref())],
            Kind::Verify | Kind::Judge => &[
                ("question", keys.question.as_ref()),
                ("expected", keys.expected.as_ref()),
            ],
            Kind::Evaluate | Kind::Select => &[],
        };
        let mut texts = Vec::with_capacity(of_kind.len());
        for (key, given) in of_kind {
            let text = Text::new(file, given.ok_or_else(|| keys.missing(file, key))?)?;
            for piece in &text.pieces {
                if let Piece::Expr { source, offset } = piece {
                    check(source).map_err(|wrong| {
                        let at = text.in_file(file, offset + wrong.at);
                        file.error(at, wrong.what).hint(wrong.hint)
                    })?;
                }
            }
            texts.push(text);
        }
        Ok(StepSource {
            id: keys.id.get_ref().clone(),
            needs,
            work,
            texts,
        })
    }

    fn check_append(&self, keys: &StepKeys, params: &Params) -> Result<()> {
        let file = self.file;
        let at = keys
            .context
            .as_ref()
            .map_or(0, |context| context.span().start);
        let id = keys.id.get_ref();
        let needs = keys.needs.get_ref();
        let [parent] = &needs[..] else {
            let what = format!(
                "`context = \"append\"` continues the only step in `needs`, but `{id}` needs {}",
                needs.len()
            );
            return Err(file
                .error(at, what)
                .hint("name that step alone in `needs`, or leave `context` at \"fresh\""));
        };
        let Some(parent) = self.ids.find(parent.get_ref()) else {
            return Err(file
                .error(at, "`context = \"append\"` cannot continue `previous`")
                .hint("put `${previous.text}` into the prompt"));
        };
        let samples = match self.keys[parent].kind() {
            Kind::Generate => self.samples(&self.keys[parent], params)?,
            _ => 0,
        };
        if samples == 1 {
            return Ok(());
        }
        let what = format!(
            "`{id}` cannot continue `{}`, which is not a single conversation",
            self.ids.list[parent]
        );
        Err(file.error(at, what).hint(
            "`append` continues a step of kind generate with one sample; put the text of any other \
             step into the prompt",
        ))
    }

    /// The step's work, without its texts.
    fn work(&self, index: usize, params: &Params) -> Result<Work> {
        let (file, keys) = (self.file, &self.keys[index]);
        Ok(match keys.kind() {
            Kind::Generate => Work::Generate(self.generate(keys, params)?),
            Kind::Evaluate => {
                let task = keys
                    .task
                    .as_ref()
                    .ok_or_else(|| keys.missing(file, "task"))?;
                let timeout = keys.timeout_ms.as_ref();
                let most = 3_600_000;
                Work::Evaluate(Evaluate {
                    of: self.one_of(keys, index, &[Kind::Generate])?,
                    task: Task::named(task.get_ref()).ok_or_else(|| {
                        let what = format!("unknown task `{}`", task.get_ref());
                        file.error(task.span().start, what).hint(choice(
                            task.get_ref(),
                            "tasks",
                            Task::NAMES,
                        ))
                    })?,
                    timeout_ms: params.count(
                        file,
                        timeout,
                        "timeout_ms",
                        DEFAULT_TIMEOUT_MS,
                        most,
                    )? as u64,
                })
            }
            Kind::Verify => Work::Verify(Verify {
                of: self.one_of(keys, index, &[Kind::Generate])?,
                question: Vec::new(),
                expected: Vec::new(),
                how: keys
                    .how
                    .as_ref()
                    .map_or(Ok(How::default()), |how| self.how(how))?,
            }),
            Kind::Judge => Work::Judge(Judge {
                of: self.one_of(keys, index, &[Kind::Generate, Kind::Verify])?,
                question: Vec::new(),
                expected: Vec::new(),
                max_tokens: keys.max_tokens(file, params)?,
            }),
            Kind::Select => {
                let scored = [Kind::Evaluate, Kind::Verify, Kind::Judge, Kind::Select];
                Work::Select(Select {
                    of: self.of(keys, index, &scored)?,
                    keep: params.count(file, keys.keep.as_ref(), "keep", 1, MOST)?,
                })
            }
        })
    }

    fn how(&self, how: &Spanned<HowKeys>) -> Result<How> {
        let error = |what: String| self.file.error(how.span().start, what);
        match how.get_ref() {
            HowKeys::Name(name) => How::named(name).ok_or_else(|| {
                error(format!("answers cannot be compared by `{name}`")).hint(choice(
                    name,
                    "ways",
                    &How::NAMES,
                ))
            }),
            HowKeys::Settings(HowSettings::Choice(extraction)) => Ok(How::Choice {
                lenient: *extraction == Extraction::Lenient,
            }),
            HowKeys::Settings(HowSettings::Numeric(ToleranceKeys { relative, absolute })) => {
                let is_bound = |bound: f64| bound.is_finite() && bound >= 0.0;
                if is_bound(*relative) && is_bound(*absolute) {
                    return Ok(How::Numeric {
                        relative: *relative,
                        absolute: *absolute,
                    });
                }
                Err(error("a tolerance is a number of at least 0".to_owned())
                    .hint("how = { numeric = { relative = 0.01 } }"))
            }
        }
    }

    fn samples(&self, keys: &StepKeys, params: &Params) -> Result<usize> {
        params.count(self.file, keys.samples.as_ref(), "samples", 1, MOST)
    }

    fn generate(&self, keys: &StepKeys, params: &Params) -> Result<Generate> {
        let file = self.file;
        let context = keys.context.as_ref();
        let samples = self.samples(keys, params)?;
        let temperature = keys.temperature(file)?;
        if let Some(given) = &keys.samples
            && samples > 1
            && temperature == 0.0
        {
            let what = "all samples would be the same: the step's temperature is 0";
            return Err(file
                .error(given.span().start, what)
                .hint("give it a temperature, such as temperature = 0.8"));
        }
        Ok(Generate {
            context: context.map_or(Context::Fresh, |context| *context.get_ref()),
            prompt: Vec::new(),
            samples,
            max_tokens: keys.max_tokens(file, params)?,
            temperature,
            top_p: keys.top_p(file)?,
            top_k: keys.top_k(file)?,
        })
    }

    fn one_of(&self, keys: &StepKeys, index: usize, kinds: &[Kind]) -> Result<String> {
        let mut of = self.of(keys, index, kinds)?;
        match of.len() {
            1 if of[0] != PREVIOUS => Ok(of.remove(0)),
            _ => Err(self
                .file
                .error(
                    keys.of.as_ref().map_or(0, |of| of.span().start),
                    format!("a step of kind `{}` works on one step", keys.kind().name()),
                )
                .hint("name one: of = \"answer\"")),
        }
    }

    /// The steps in `of`, which must be of one of `kinds`.
    fn of(&self, keys: &StepKeys, index: usize, kinds: &[Kind]) -> Result<Vec<String>> {
        let of = keys
            .of
            .as_ref()
            .ok_or_else(|| keys.missing(self.file, "of"))?;
        let at = of.span().start;
        let list = of.get_ref().list();
        let mut taken = BTreeSet::new();
        for name in list {
            // In a loop, `previous` is either its start or the carried step.
            let meant = match self.loop_of(index) {
                Some(of) if name == PREVIOUS => vec![of.start, of.carry],
                _ => vec![self.needed(index, name, "of", at)?],
            };
            for step in meant {
                let kind = self.keys[step].kind();
                if !kinds.contains(&kind) {
                    return Err(wrong_kind(
                        self.file,
                        at,
                        keys,
                        self.ids.list[step],
                        kind,
                        kinds,
                    ));
                }
            }
            if !taken.insert(name) {
                let what = format!("`{name}` occurs twice in `of`");
                return Err(self.file.error(at, what).hint("list it once"));
            }
        }
        if list.is_empty() {
            return Err(self
                .file
                .error(at, "`of` is empty")
                .hint("name one: of = \"answer\""));
        }
        Ok(list.to_vec())
    }
}

fn wrong_kind(
    file: &SourceFile,
    at: usize,
    keys: &StepKeys,
    id: &str,
    kind: Kind,
    kinds: &[Kind],
) -> Error {
    let what = format!(
        "a step of kind `{}` cannot work on `{id}`, which is of kind `{}`",
        keys.kind().name(),
        kind.name()
    );
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    file.error(at, what)
        .hint(format!("it works on steps of kind {}", names.join(", ")))
}
