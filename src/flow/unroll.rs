//! Unrolls loops: the steps of a `[[loop]]` are repeated for each generation.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::Generation;
use super::graph::Graph;
use super::loops::{Loop, loops_of};
use super::steps::StepSource;

/// A step of a flow: a step of the template, in one generation.
#[derive(Debug)]
pub(super) struct Instance {
    /// Index of the step in the template.
    pub(super) source: usize,
    pub(super) id: String,
    pub(super) needs: Vec<String>,
    pub(super) generation: Option<Generation>,
    /// Maps the names in the step's `of` to instance ids.
    pub(super) of: BTreeMap<String, String>,
}

/// The instances of all steps in topological order; ties keep the order of the template, generation after
/// generation.
///
/// # Errors
/// The ids along a dependency cycle. The template's graph has none, but loops may depend on each other's last
/// generations.
pub(super) fn unroll(steps: &[StepSource], loops: &[Loop]) -> Result<Vec<Instance>, Vec<String>> {
    let unrolled = Unrolled::new(steps, loops);
    let mut instances = Vec::new();
    let mut begun = BTreeSet::new();
    for index in 0..steps.len() {
        match unrolled.loop_of(index) {
            None => instances.push(unrolled.instance(index, None)),
            Some((number, of)) if begun.insert(number) => {
                for generation in 1..=of.generations {
                    let steps = of.steps.iter();
                    let within = Within {
                        of,
                        number: number + 1,
                        generation,
                    };
                    instances.extend(steps.map(|step| unrolled.instance(*step, Some(within))));
                }
            }
            Some(_) => {}
        }
    }
    let place: HashMap<&str, usize> = (instances.iter().enumerate())
        .map(|(place, instance)| (instance.id.as_str(), place))
        .collect();
    let needs = instances.iter().map(|instance| {
        let needs = instance.needs.iter();
        needs
            .filter_map(|need| place.get(need.as_str()).copied())
            .collect()
    });
    let order = Graph::new(needs.collect()).order();
    let order = order.map_err(|cycle| {
        let id = |place: &usize| instances[*place].id.clone();
        cycle.iter().map(id).collect::<Vec<String>>()
    })?;
    let mut taken: Vec<Option<Instance>> = instances.into_iter().map(Some).collect();
    let instances = order.into_iter().filter_map(|place| taken[place].take());
    Ok(instances.collect())
}

struct Unrolled<'a> {
    steps: &'a [StepSource],
    loops: &'a [Loop],
    index: HashMap<&'a str, usize>,
    /// The index of each step's loop.
    loop_of: Vec<Option<usize>>,
}

/// A generation of a loop, both numbered from 1.
#[derive(Clone, Copy)]
struct Within<'a> {
    of: &'a Loop,
    number: usize,
    generation: usize,
}

impl<'a> Unrolled<'a> {
    fn new(steps: &'a [StepSource], loops: &'a [Loop]) -> Self {
        let ids = steps.iter().map(|step| step.id.as_str());
        Self {
            steps,
            loops,
            index: ids.zip(0..).collect(),
            loop_of: loops_of(loops, steps.len()),
        }
    }

    fn loop_of(&self, step: usize) -> Option<(usize, &'a Loop)> {
        let number = self.loop_of[step]?;
        Some((number, &self.loops[number]))
    }

    fn index(&self, id: &str) -> Option<usize> {
        self.index.get(id).copied()
    }

    /// The instance of `step` seen from outside its loop: that of the last generation.
    fn last(&self, step: usize) -> String {
        let id = &self.steps[step].id;
        match self.loop_of(step) {
            Some((_, of)) => in_generation(id, of.generations),
            None => id.clone(),
        }
    }

    fn instance(&self, index: usize, within: Option<Within>) -> Instance {
        let step = &self.steps[index];
        let previous = within.map(|within| match within.generation {
            1 => self.last(within.of.start),
            later => in_generation(&self.steps[within.of.carry].id, later - 1),
        });
        let name = |id: &str| match (self.index(id), within) {
            (Some(needed), Some(within)) if within.of.steps.contains(&needed) => {
                in_generation(id, within.generation)
            }
            (Some(needed), _) => self.last(needed),
            // `previous` is the only other name that passes the checks.
            (None, _) => previous.clone().unwrap_or_else(|| id.to_owned()),
        };
        let mut needs: Vec<String> = Vec::with_capacity(step.needs.len() + 1);
        let mut seen = HashSet::with_capacity(step.needs.len());
        for need in step.needs.iter().map(|need| name(need)) {
            // `previous` may be a step that is also named.
            if seen.insert(need.clone()) {
                needs.push(need);
            }
        }
        if let (Some(previous), Some(Within { of, .. })) = (&previous, within) {
            let in_loop = |need: &String| {
                let needed = self.index(need);
                needed.is_some_and(|needed| of.steps.contains(&needed))
            };
            if !step.needs.iter().any(in_loop) && !seen.contains(previous) {
                needs.push(previous.clone());
            }
        }
        Instance {
            source: index,
            id: match within {
                Some(within) => in_generation(&step.id, within.generation),
                None => step.id.clone(),
            },
            needs,
            generation: within
                .zip(previous.clone())
                .map(|(within, previous)| Generation {
                    r#loop: within.number,
                    number: within.generation,
                    previous,
                    carries: within.of.carry == index,
                }),
            of: (step.work.of().iter())
                .map(|id| (id.clone(), name(id)))
                .collect(),
        }
    }
}

/// Unique, because ids in a template cannot contain a `.`.
fn in_generation(id: &str, generation: usize) -> String {
    format!("{id}.{generation}")
}
