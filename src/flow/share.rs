//! How much of the prompts is shared as a prefix, so that a prefix cache can reuse it, and how
//! much would be if the same parts stood in another order.

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
    let mut reordered: Vec<u64> = Vec::with_capacity(first.steps.len());
    for ((step, generate), prompt_constant) in generating(&first).zip(prompt_constants) {
        reordered.push(match parent(&first, step, generate) {
            Some(parent) => reordered[parent],
            None => (system_constant + prompt_constant) as u64,
        });
    }
    Ok(tally.finish(&reordered))
}

/// What was seen of the flows so far: per step a few numbers, and one number a request.
struct Tally<'a> {
    first: &'a Flow,
    first_requests: Vec<Request<'a>>,
    flows: usize,
    prompt_bytes: Vec<u64>,
    common_bytes: Vec<u64>,
    all_steps_bytes: u64,
    /// What each request has in common with an earlier one of its flow, flow after flow.
    own_bytes: Vec<u64>,
}

impl<'a> Tally<'a> {
    fn new(first: &'a Flow) -> Self {
        let first_requests = requests(first);
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
        let requests = requests(flow);
        for (index, request) in requests.iter().enumerate() {
            self.prompt_bytes[index] += request.iter().map(Piece::len).sum::<u64>();
            let with_first = common(request, &self.first_requests[index], Holes::Differ);
            self.common_bytes[index] = self.common_bytes[index].min(with_first);
            let with_any = common(request, &self.first_requests[0], Holes::Differ);
            self.all_steps_bytes = self.all_steps_bytes.min(with_any);
            let earlier = requests[..index].iter();
            let with_earlier = earlier.map(|earlier| common(request, earlier, Holes::Same));
            self.own_bytes.push(with_earlier.max().unwrap_or(0));
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

#[derive(Clone, Copy)]
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

fn requests(flow: &Flow) -> Vec<Request<'_>> {
    let mut requests: Vec<Request> = Vec::with_capacity(flow.steps.len());
    for (step, generate) in generating(flow) {
        let mut request = match parent(flow, step, generate) {
            // A copy of a few references.
            Some(parent) => {
                let mut request = requests[parent].clone();
                request.push(Piece::Hole(&step.needs[0]));
                request
            }
            None => flow
                .system
                .iter()
                .map(|system| Piece::Text(system))
                .collect(),
        };
        request.push(Piece::Turn);
        request.extend(generate.prompt.iter().map(|part| match part {
            Part::Text(text) => Piece::Text(text),
            Part::Expr(source) => Piece::Hole(source),
        }));
        requests.push(request);
    }
    requests
}

/// The steps that generate, with what they ask.
fn generating(flow: &Flow) -> impl Iterator<Item = (&Step, &Generate)> {
    let steps = flow.steps.iter();
    steps.filter_map(|step| Some((step, step.generate()?)))
}

/// The step whose conversation goes on, counted among those that generate. It stands before the one
/// that goes on with it.
fn parent(flow: &Flow, step: &Step, generate: &Generate) -> Option<usize> {
    let needed = match generate.context {
        Context::Append => step.needs.first()?,
        Context::Fresh => return None,
    };
    generating(flow).position(|(step, _)| step.id == *needed)
}

/// Whether the same hole in two requests is filled with the same text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holes {
    Same,
    Differ,
}

/// Bytes of text that two requests have in common from their beginning.
fn common(a: &Request, b: &Request, holes: Holes) -> u64 {
    let mut bytes = 0;
    for (a, b) in a.iter().zip(b) {
        match (a, b) {
            (Piece::Turn, Piece::Turn) => {}
            (Piece::Hole(a), Piece::Hole(b)) if holes == Holes::Same && a == b => {}
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
