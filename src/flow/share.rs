//! How much of the prompts is shared as a prefix, so that a prefix cache can reuse it, and how
//! much would be if the same parts stood in another order.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use serde::Serialize;

use crate::error::Result;
use crate::units::plural;

use super::render::Renderer;
use super::{Context, Flow, Generate, Part, Step};

/// Prefix sharing among the requests of an expansion, in bytes of text.
///
/// A *request* is one step of one flow that generates. Its *text* is all that the model is given and that is
/// known at the expansion: the system message, the prompt, and for a step that appends those of
/// the conversation it goes on with. What earlier steps will have answered is not known and not
/// counted; it is taken to differ from flow to flow, so that no prefix common to flows goes past
/// it, and to be the same wherever one flow repeats it.
///
/// Bytes are no tokens, but shares of them are close to shares of tokens.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PrefixShare {
    /// How many flows were looked at.
    pub flows: usize,
    /// The text of all requests together.
    pub prompt_bytes: u64,
    /// The prefix that every request of every flow and step begins with.
    pub all_steps_bytes: u64,
    /// What a prefix cache can take from requests before: for each request, the longer of what its
    /// step begins with in every flow (not for the first flow) and what it has in common with an
    /// earlier step of its own flow, summed.
    pub reusable_bytes: u64,
    /// The same with `common_bytes_reordered` in place of `common_bytes`.
    pub reusable_bytes_reordered: u64,
    /// Step by step.
    pub steps: Vec<StepShare>,
}

/// Prefix sharing of one step across the flows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepShare {
    /// The step.
    pub id: String,
    /// The text of this step's requests, over all flows.
    pub prompt_bytes: u64,
    /// The prefix that this step's request begins with in every flow.
    pub common_bytes: u64,
    /// What that prefix would be if, in the system message and the prompt, the parts that are the
    /// same in every flow stood before those that are not. A step that appends comes after an
    /// answer: for it only the conversation's first prompt can be put in another order.
    pub common_bytes_reordered: u64,
}

/// Renders each flow and measures it. Linear in the length of the text.
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

/// What was seen of the flows so far: per step a few numbers, and one number a request.
struct Tally<'a> {
    first: &'a Flow,
    /// The requests of the first flow; of those that go on with a conversation nothing.
    first_requests: Vec<Option<Request<'a>>>,
    flows: usize,
    prompt_bytes: Vec<u64>,
    common_bytes: Vec<u64>,
    all_steps_bytes: u64,
    /// What each request has in common with an earlier one of its flow, flow after flow.
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
            // Of no flows at all; each one can only make it less.
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
        // Of each request: its length, where it ends, and what it begins with in other flows.
        let mut requests: Vec<(u64, usize, u64)> = Vec::with_capacity(parents.len());
        for (index, ((step, generate), parent)) in generating(flow).zip(&parents).enumerate() {
            let bytes: u64 = turn(generate).map(|piece| piece.len()).sum();
            let (whole, start, hole, with_first) = match parent {
                // What goes on begins with all of that. Its answer is a hole, and differs from flow to
                // flow: they have in common what the conversations' first requests have.
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
            // Before the first request there is nothing, its system message included.
            self.own_bytes
                .push(if index == 0 { 0 } else { known + found });
            requests.push((whole, end, with_first));
        }
        self.flows += 1;
    }

    /// `reordered`: what each step's flows could have in common, in bytes.
    fn finish(self, reordered: &[u64]) -> PrefixShare {
        let steps: Vec<StepShare> = (generating(self.first).enumerate())
            .map(|(index, (step, _))| StepShare {
                id: step.id.clone(),
                prompt_bytes: self.prompt_bytes[index],
                common_bytes: self.common_bytes[index],
                // The order as written may do better, where parts that differ begin alike.
                common_bytes_reordered: self.common_bytes[index].max(reordered[index]),
            })
            .collect();
        PrefixShare {
            flows: self.flows,
            prompt_bytes: self.prompt_bytes.iter().sum(),
            all_steps_bytes: self.all_steps_bytes,
            reusable_bytes: self.reusable(&steps, |step| step.common_bytes),
            reusable_bytes_reordered: self.reusable(&steps, |step| step.common_bytes_reordered),
            steps,
        }
    }

    fn reusable(&self, steps: &[StepShare], common: impl Fn(&StepShare) -> u64) -> u64 {
        let mut bytes = 0;
        for (flow, own) in self.own_bytes.chunks(steps.len().max(1)).enumerate() {
            for (step, own) in steps.iter().zip(own) {
                // The first flow comes before there is anything to share with another.
                let with_flows = if flow == 0 { 0 } else { common(step) };
                bytes += with_flows.max(*own);
            }
        }
        bytes
    }
}

/// A request's text, and what stands between.
type Request<'a> = Vec<Piece<'a>>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Piece<'a> {
    Text(&'a str),
    /// Where a message begins: text does not run on from one to the next.
    Turn,
    /// What is only known at the run: a step's `${…}`, or a step's answer.
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

/// The steps that generate, with what they ask.
fn generating(flow: &Flow) -> impl Iterator<Item = (&Step, &Generate)> {
    let steps = flow.steps.iter();
    steps.filter_map(|step| Some((step, step.generate()?)))
}

/// For each step that generates, the one whose conversation goes on, counted among these. It stands
/// before the one that goes on with it.
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

/// The requests of a flow so far, as a tree of their pieces: what a request has in common with any of
/// them is found on its way down, however many there are. The same hole is filled with the same text.
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

    /// The node behind `pieces`, which is made where it is missing.
    fn follow(&mut self, node: usize, pieces: impl IntoIterator<Item = Piece<'a>>) -> usize {
        self.add(node, pieces).1
    }

    /// Adds a request that goes on from `node`. Returns how many bytes of what is added an earlier one
    /// has, too, and the node behind it.
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
                        // Sorted, those that have most in common with it stand beside it.
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

/// Bytes of text that requests of two flows have in common from their beginning: no hole is filled
/// with the same text.
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
    // The same system message, most often.
    if std::ptr::eq(a, b) {
        return a.len();
    }
    // Compared in blocks, which the compiler does many bytes at a time.
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
                "  {}: {} of {} bytes begin every flow alike, {} with the constant parts first",
                step.id,
                step.common_bytes,
                step.prompt_bytes / self.flows.max(1) as u64,
                step.common_bytes_reordered
            )?;
        }
        writeln!(
            f,
            "  all steps: {} bytes begin every request alike",
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

    /// What two requests of one flow have in common, piece by piece.
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
        fn the_tree_finds_what_comparing_with_each_earlier_request_finds(
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
