//! How much of the prompts is a shared prefix that a prefix cache can reuse, and how much would be if
//! constant parts came first.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Serialize;

use crate::error::Result;
use crate::units::plural;

use super::render::Renderer;
use super::{Context, Flow, Generate, Part, Step};

/// Prefix sharing among the requests of an expansion, in bytes of text.
///
/// A *request* is one generating step of one flow. Its *text* is the part of the model's input that is known
/// after expansion: the system message, the prompt, and for a step that appends also those of the
/// conversation it continues. Answers of earlier steps are unknown and not counted. They are assumed to
/// differ between flows, which ends a prefix shared across flows, and to be identical wherever a flow repeats
/// them.
///
/// Shares of bytes approximate shares of tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrefixShare {
    /// Number of flows measured.
    pub flows: usize,
    /// Total text of all requests.
    pub prompt_bytes: u64,
    /// The common prefix of all requests.
    pub all_steps_bytes: u64,
    /// What a prefix cache can reuse from earlier requests: for each request, the longer of the prefix common
    /// to its step in all flows (except in the first flow) and the prefix shared with an earlier step of its
    /// own flow, summed.
    pub reusable_bytes: u64,
    /// The same, with `common_bytes_reordered` instead of `common_bytes`.
    pub reusable_bytes_reordered: u64,
    pub steps: Vec<StepShare>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepShare {
    /// Id of the step.
    pub id: String,
    /// Text of this step's requests over all flows.
    pub prompt_bytes: u64,
    /// The prefix common to this step's requests in all flows.
    pub common_bytes: u64,
    /// The length of that prefix if, in the system message and the prompt, the parts that are the same in
    /// every flow came first. A step that appends follows an answer, so only the first prompt of its
    /// conversation can be reordered.
    pub common_bytes_reordered: u64,
    /// This step's part of [`PrefixShare::reusable_bytes`].
    pub reusable_bytes: u64,
}

/// Renders and measures each flow. Linear in the length of the text.
pub(super) fn measure(renderer: &mut Renderer, num_flows: usize) -> Result<PrefixShare> {
    let (system_constant, prompt_constants) = renderer.constant_bytes()?;
    let first = renderer.flow(1)?;
    let mut tally = Tally::new(&first);
    for number in 1..=num_flows {
        tally.add(&renderer.flow(number)?);
    }
    let parents = parents(&first);
    let mut reordered: Vec<u64> = Vec::with_capacity(parents.len());
    for (parent, prompt_constant) in parents.iter().zip(prompt_constants) {
        reordered.push(match parent {
            Some(parent) => reordered[*parent],
            None => (system_constant + prompt_constant) as u64,
        });
    }
    Ok(tally.finish(&reordered))
}

/// Measures flows, of which `first` is the first. What another order of parts could share is not known:
/// `common_bytes_reordered` is `common_bytes`.
pub(super) fn measure_flows(first: &Flow, flows: impl Iterator<Item = Flow>) -> PrefixShare {
    let mut tally = Tally::new(first);
    let steps = tally.first_requests.len();
    for flow in flows.filter(|flow| generating(flow).count() == steps) {
        tally.add(&flow);
    }
    tally.finish(&vec![0; steps])
}

/// How many bytes the requests of a step have in common in two flows; `None` if one has no such step. A step
/// that appends has the start of its conversation.
pub(super) fn common_start(one: &Flow, other: &Flow, id: &str) -> Option<u64> {
    Some(common(&start(one, id)?, &start(other, id)?))
}

/// The first request of the conversation of a step.
fn start<'a>(flow: &'a Flow, id: &str) -> Option<Request<'a>> {
    let parents = parents(flow);
    let mut index = generating(flow).position(|(step, _)| step.id == id)?;
    while let Some(parent) = parents[index] {
        index = parent;
    }
    let (_, generate) = generating(flow).nth(index)?;
    Some(system(flow).into_iter().chain(turn(generate)).collect())
}

/// The statistics of the flows so far: a few numbers per step, and one number per request.
struct Tally<'a> {
    first: &'a Flow,
    /// The requests of the first flow; `None` for those that continue a conversation.
    first_requests: Vec<Option<Request<'a>>>,
    flows: usize,
    prompt_bytes: Vec<u64>,
    common_bytes: Vec<u64>,
    all_steps_bytes: u64,
    /// The prefix that each request shares with an earlier one of its flow, flow after flow.
    own_bytes: Vec<u64>,
}

impl<'a> Tally<'a> {
    fn new(first: &'a Flow) -> Self {
        let parents = parents(first);
        let first_requests: Vec<Option<Request>> = (generating(first).zip(&parents))
            .map(|((_, generate), parent)| match parent {
                Some(_) => None,
                None => Some(system(first).into_iter().chain(turn(generate)).collect()),
            })
            .collect();
        Self {
            first,
            flows: 0,
            prompt_bytes: vec![0; first_requests.len()],
            // The identity of the minimum.
            common_bytes: vec![u64::MAX; first_requests.len()],
            first_requests,
            all_steps_bytes: u64::MAX,
            own_bytes: Vec::new(),
        }
    }

    fn add(&mut self, flow: &Flow) {
        let parents = parents(flow);
        let mut earlier = Prefixes::new();
        let of_system = earlier.follow(Prefixes::ROOT, system(flow));
        // For each request: its length, its end in the tree, and its common prefix with other flows.
        let mut requests: Vec<(u64, usize, u64)> = Vec::with_capacity(parents.len());
        for (index, ((step, generate), parent)) in generating(flow).zip(&parents).enumerate() {
            let bytes: u64 = turn(generate).map(|piece| piece.len()).sum();
            let (whole, start, hole, with_first) = match parent {
                // It starts with the whole conversation. The answer is a hole that differs between flows, so
                // flows share what the first requests of the conversations share.
                Some(parent) => {
                    let (length, end, with_first) = requests[*parent];
                    let hole = Some(Piece::Hole(&step.needs[0]));
                    (length + bytes, (length, end), hole, with_first)
                }
                None => {
                    let request: Request = system(flow).into_iter().chain(turn(generate)).collect();
                    let with = |other: &Option<Request>| {
                        let other = other.as_deref().unwrap_or_default();
                        common(&request, other)
                    };
                    let with_first = with(&self.first_requests[index]);
                    let with_any = with(&self.first_requests[0]);
                    self.all_steps_bytes = self.all_steps_bytes.min(with_any);
                    let length = flow.system.as_ref().map_or(0, |system| system.len() as u64);
                    (length + bytes, (length, of_system), None, with_first)
                }
            };
            self.prompt_bytes[index] += whole;
            self.common_bytes[index] = self.common_bytes[index].min(with_first);
            let (known, node) = start;
            let rest = hole.into_iter().chain(turn(generate));
            let (found, end) = earlier.add(node, rest);
            // Nothing precedes the first request, not even its system message.
            self.own_bytes
                .push(if index == 0 { 0 } else { known + found });
            requests.push((whole, end, with_first));
        }
        self.flows += 1;
    }

    /// `reordered`: the possible common prefix of each step's requests, in bytes.
    fn finish(self, reordered: &[u64]) -> PrefixShare {
        let mut steps: Vec<StepShare> = (generating(self.first).enumerate())
            .map(|(index, (step, _))| StepShare {
                id: step.id.clone(),
                prompt_bytes: self.prompt_bytes[index],
                common_bytes: self.common_bytes[index],
                // The present order may be better if differing parts start alike.
                common_bytes_reordered: self.common_bytes[index].max(reordered[index]),
                reusable_bytes: 0,
            })
            .collect();
        let now = self.reusable(&steps, |step| step.common_bytes);
        let reordered = self.reusable(&steps, |step| step.common_bytes_reordered);
        for (step, bytes) in steps.iter_mut().zip(&now) {
            step.reusable_bytes = *bytes;
        }
        PrefixShare {
            flows: self.flows,
            prompt_bytes: self.prompt_bytes.iter().sum(),
            all_steps_bytes: self.all_steps_bytes,
            reusable_bytes: now.iter().sum(),
            reusable_bytes_reordered: reordered.iter().sum(),
            steps,
        }
    }

    /// What can be reused of each step's requests, over all flows.
    fn reusable(&self, steps: &[StepShare], common: impl Fn(&StepShare) -> u64) -> Vec<u64> {
        let mut bytes = vec![0; steps.len()];
        for (flow, own) in self.own_bytes.chunks(steps.len().max(1)).enumerate() {
            for ((bytes, step), own) in bytes.iter_mut().zip(steps).zip(own) {
                // The first flow has no other flow to share with.
                let with_flows = if flow == 0 { 0 } else { common(step) };
                *bytes += with_flows.max(*own);
            }
        }
        bytes
    }
}

/// A request as a sequence of pieces.
type Request<'a> = Vec<Piece<'a>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    /// The start of a message. Text does not continue across it.
    Turn,
    /// Text known only at run time: a `${…}`, or the answer of a step.
    Hole(&'a str),
}

impl Piece<'_> {
    fn len(&self) -> u64 {
        match self {
            Self::Text(text) => text.len() as u64,
            Self::Turn | Self::Hole(_) => 0,
        }
    }
}

fn system(flow: &Flow) -> Option<Piece<'_>> {
    flow.system.as_ref().map(|system| Piece::Text(system))
}

/// The message that a step adds to its conversation.
fn turn(generate: &Generate) -> impl Iterator<Item = Piece<'_>> {
    let parts = generate.prompt.iter().map(|part| match part {
        Part::Text(text) => Piece::Text(text),
        Part::Expr(source) => Piece::Hole(source),
    });
    std::iter::once(Piece::Turn).chain(parts)
}

/// The generating steps.
fn generating(flow: &Flow) -> impl Iterator<Item = (&Step, &Generate)> {
    let steps = flow.steps.iter();
    steps.filter_map(|step| Some((step, step.generate()?)))
}

/// For each generating step, the index (among these) of the one whose conversation it continues, which
/// always precedes it.
fn parents(flow: &Flow) -> Vec<Option<usize>> {
    let mut index: HashMap<&str, usize> = HashMap::new();
    let mut parents = Vec::new();
    for (number, (step, generate)) in generating(flow).enumerate() {
        parents.push(match generate.context {
            Context::Append => (step.needs.first()).and_then(|id| index.get(id.as_str()).copied()),
            Context::Fresh => None,
        });
        index.insert(&step.id, number);
    }
    parents
}

/// A trie of the requests of a flow so far. The longest prefix that a request shares with any of them is
/// found while it is inserted. Equal holes are assumed to be filled with the same text.
struct Prefixes<'a>(Vec<Node<'a>>);

#[derive(Default)]
struct Node<'a> {
    texts: BTreeMap<&'a str, usize>,
    holes: BTreeMap<&'a str, usize>,
    turn: Option<usize>,
}

impl<'a> Prefixes<'a> {
    const ROOT: usize = 0;

    fn new() -> Self {
        Self(vec![Node::default()])
    }

    /// The node after `pieces`, created if missing.
    fn follow(&mut self, node: usize, pieces: impl IntoIterator<Item = Piece<'a>>) -> usize {
        self.add(node, pieces).1
    }

    /// Adds a request that continues from `node`. Returns the number of bytes shared with an earlier request,
    /// and the node at the end.
    fn add(
        &mut self,
        mut node: usize,
        pieces: impl IntoIterator<Item = Piece<'a>>,
    ) -> (u64, usize) {
        let mut bytes = 0;
        let mut is_known = true;
        for piece in pieces {
            let new = self.0.len();
            let here = &mut self.0[node];
            let next = match piece {
                Piece::Text(text) => {
                    if is_known {
                        // In sorted order, the texts with the longest common prefix are the neighbors.
                        let before = here.texts.range(..=text).next_back();
                        let after = here.texts.range(text..).next();
                        let beside = before.into_iter().chain(after);
                        let common =
                            beside.map(|(known, _)| common_text(known.as_bytes(), text.as_bytes()));
                        bytes += common.max().unwrap_or(0) as u64;
                    }
                    *here.texts.entry(text).or_insert(new)
                }
                Piece::Hole(source) => *here.holes.entry(source).or_insert(new),
                Piece::Turn => *here.turn.get_or_insert(new),
            };
            if next == new {
                is_known = false;
                self.0.push(Node::default());
            }
            node = next;
        }
        (bytes, node)
    }
}

/// The common prefix of requests of two flows, in bytes of text. Holes are assumed to differ.
fn common(a: &[Piece], b: &[Piece]) -> u64 {
    let mut bytes = 0;
    for (a, b) in a.iter().zip(b) {
        match (a, b) {
            (Piece::Turn, Piece::Turn) => {}
            (Piece::Text(a), Piece::Text(b)) => {
                let length = common_text(a.as_bytes(), b.as_bytes());
                bytes += length as u64;
                if length < a.len().max(b.len()) {
                    break;
                }
            }
            _ => break,
        }
    }
    bytes
}

fn common_text(a: &[u8], b: &[u8]) -> usize {
    // Usually it is the same system message.
    if std::ptr::eq(a, b) {
        return a.len();
    }
    // Compare in blocks, which the compiler vectorizes.
    const BLOCK: usize = 256;
    let blocks = a.chunks_exact(BLOCK).zip(b.chunks_exact(BLOCK));
    let same = blocks.take_while(|(a, b)| a == b).count() * BLOCK;
    let rest = a[same..].iter().zip(&b[same..]);
    same + rest.take_while(|(a, b)| a == b).count()
}

impl fmt::Display for PrefixShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |bytes: u64| 100.0 * bytes as f64 / self.prompt_bytes.max(1) as f64;
        writeln!(
            f,
            "Prefix sharing: {} x {}, {} bytes of prompt text",
            plural(self.flows, "flow"),
            plural(self.steps.len(), "step"),
            self.prompt_bytes
        )?;
        for step in &self.steps {
            writeln!(
                f,
                "  {}: {} of {} bytes are common to all flows, {} with the constant parts first",
                step.id,
                step.common_bytes,
                step.prompt_bytes / self.flows.max(1) as u64,
                step.common_bytes_reordered
            )?;
        }
        writeln!(
            f,
            "  all steps: {} bytes are common to all requests",
            self.all_steps_bytes
        )?;
        write!(
            f,
            "  reusable: {:.1} % of the text, {:.1} % with the constant parts first",
            percent(self.reusable_bytes),
            percent(self.reusable_bytes_reordered)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The common prefix of two requests of one flow, compared piece by piece.
    fn common_of_a_flow(a: &[Piece], b: &[Piece]) -> u64 {
        let mut bytes = 0;
        for (a, b) in a.iter().zip(b) {
            if let (Piece::Text(a), Piece::Text(b)) = (a, b) {
                bytes += common_text(a.as_bytes(), b.as_bytes()) as u64;
            }
            if a != b {
                break;
            }
        }
        bytes
    }

    proptest! {
        #[test]
        fn the_trie_matches_pairwise_comparison(
            requests in prop::collection::vec(
                prop::collection::vec((0u8..3, "[ab]{0,4}"), 0..5), 1..8),
        ) {
            let requests: Vec<Request> = (requests.iter())
                .map(|pieces| (pieces.iter())
                    .map(|(kind, text)| match kind {
                        0 => Piece::Turn,
                        1 => Piece::Hole(text),
                        _ => Piece::Text(text),
                    })
                    .collect())
                .collect();
            let mut tree = Prefixes::new();
            for (index, request) in requests.iter().enumerate() {
                let each = requests[..index].iter().map(|earlier| common_of_a_flow(request, earlier));
                let (found, _) = tree.add(Prefixes::ROOT, request.iter().copied());
                prop_assert_eq!(found, each.max().unwrap_or(0));
            }
        }
    }
}
