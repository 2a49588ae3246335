//! The forward passes of a run, recovered from the times of its tokens.

use super::cost::Pass;
use super::recording::{Recording, Work};
use crate::record::StepRecord;

/// Tokens of one pass have one time. Their gaps are rounded to a microsecond each, in milliseconds.
const SAME_PASS: f64 = 0.03;

/// What was seen of the passes in which one sequence decoded alone, where drafts are tried.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Alone {
    pub(super) passes: usize,
    /// Tokens that these passes gave.
    pub(super) tokens: usize,
}

/// The passes of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Observed {
    /// With their milliseconds.
    pub(super) passes: Vec<(Pass, f64)>,
    /// By item of the recording.
    pub(super) alone: Vec<Alone>,
    /// The most sequences that decoded at once.
    pub(super) largest_batch: f64,
}

/// A moment at which a sequence began, or a token of it was there.
struct Moment {
    ms: f64,
    item: usize,
    /// Number of the token, from 0; `None` for the begin of the first pass.
    token: Option<usize>,
}

/// The passes of an engine in this process: all tokens of a pass have the same time. `pass_tokens` is the most
/// that a pass computes, which tells how long prompts were cut.
pub(super) fn of_passes(
    recording: &Recording,
    steps: &[StepRecord],
    pass_tokens: usize,
) -> Observed {
    let mut moments = Vec::new();
    let mut tokens_left = vec![0; recording.items.len()];
    // Sequences after their first token and before their last.
    let mut decoding = 0;
    for (item, request) in recording.requests() {
        moments.push(Moment {
            ms: request.queue,
            item,
            token: None,
        });
        let times = token_times(recording, steps, item);
        tokens_left[item] = times.len();
        for (token, ms) in times.into_iter().enumerate() {
            moments.push(Moment {
                ms,
                item,
                token: Some(token),
            });
        }
    }
    moments.sort_by(|a, b| a.ms.total_cmp(&b.ms));
    let mut observed = Observed {
        alone: vec![Alone::default(); recording.items.len()],
        ..Observed::default()
    };
    let mut alone_of: Vec<Option<usize>> = Vec::new();
    // Sequences with prompt tokens to compute, in order of admission, and how many.
    let mut prefilling: Vec<(usize, usize)> = Vec::new();
    let mut before = moments.first().map_or(0.0, |moment| moment.ms);
    let mut rest = moments.as_slice();
    while let Some(first) = rest.first() {
        let same = rest.partition_point(|moment| moment.ms - first.ms < SAME_PASS);
        let (now, later) = rest.split_at(same);
        rest = later;
        let mut pass = Pass {
            passes: 1.0,
            ..Pass::default()
        };
        // Tokens by sequence: several if drafts were accepted.
        let mut decoded: Vec<(usize, usize, usize)> = Vec::new();
        let mut ended_prompts = Vec::new();
        for moment in now {
            match moment.token {
                None => {}
                Some(0) => ended_prompts.push(moment.item),
                Some(token) => match decoded.iter_mut().find(|(item, ..)| *item == moment.item) {
                    Some((_, _, count)) => *count += 1,
                    None => decoded.push((moment.item, token, 1)),
                },
            }
        }
        let ms = now.last().map_or(first.ms, |moment| moment.ms) - before;
        let has_tokens = !(decoded.is_empty() && ended_prompts.is_empty());
        if has_tokens {
            pass.decoding = decoded.len() as f64;
            pass.decode_rows = pass.decoding;
            for &(item, token, _) in &decoded {
                pass.decode_context += (prompt_of(recording, item) + token) as f64;
            }
            let mut left = pass_tokens.saturating_sub(decoded.len());
            for (item, missing) in &mut prefilling {
                let count = match ended_prompts.contains(item) {
                    true => *missing,
                    false => (*missing).min(left),
                };
                left = left.saturating_sub(count);
                let done = prompt_of(recording, *item) - *missing;
                pass.prompt_rows += count as f64;
                pass.prompt_context += count as f64 * (done as f64 + count as f64 / 2.0);
                *missing -= count;
            }
            prefilling.retain(|(item, _)| !ended_prompts.contains(item));
            if decoded.is_empty() {
                // Chunks before the last one end without a token.
                pass.passes = (pass.prompt_rows / pass_tokens as f64).ceil().max(1.0);
            }
            let mut lone = None;
            if let &[(item, _, count)] = decoded.as_slice()
                && pass.prompt_rows <= 0.0
            {
                observed.alone[item].passes += 1;
                observed.alone[item].tokens += count;
                lone = Some(item);
            }
            observed.largest_batch = observed.largest_batch.max(pass.decoding);
            alone_of.push(lone);
            observed.passes.push((pass, ms));
        }
        for moment in now.iter().filter(|moment| moment.token.is_some()) {
            let left = &mut tokens_left[moment.item];
            decoding += usize::from(moment.token == Some(0));
            *left -= 1;
            decoding -= usize::from(*left == 0);
        }
        // Prompts are computed in passes without a token, unless a sequence that decodes has one in each. Otherwise
        // what lies before the begin of a sequence is the work of this process to prepare it.
        if has_tokens || decoding > 0 || prefilling.is_empty() {
            before = now.last().map_or(first.ms, |moment| moment.ms);
        }
        for moment in now.iter().filter(|moment| moment.token.is_none()) {
            if let Work::Request(request) = recording.items[moment.item].work {
                prefilling.push((moment.item, request.prompt - request.reused));
            }
        }
    }
    // Drafts are rows of the passes in which a sequence was alone; how many in which of them is not recorded.
    for ((pass, _), item) in observed.passes.iter_mut().zip(alone_of) {
        let Some(item) = item else { continue };
        if let Work::Request(request) = recording.items[item].work {
            let rows = 1.0 + request.drafted as f64 / observed.alone[item].passes.max(1) as f64;
            pass.decode_rows *= rows;
            pass.decode_context *= rows;
        }
    }
    observed
}

fn prompt_of(recording: &Recording, item: usize) -> usize {
    match recording.items[item].work {
        Work::Request(request) => request.prompt,
        _ => 0,
    }
}

/// When each token was there, and at last the end of the turn, in milliseconds.
fn token_times(recording: &Recording, steps: &[StepRecord], item: usize) -> Vec<f64> {
    let Work::Request(request) = recording.items[item].work else {
        return Vec::new();
    };
    let gaps = recording.sources[item].map_or(&[][..], |index| steps[index].gaps_ms.as_slice());
    let sum: f64 = gaps.iter().sum();
    // Each gap was rounded; the sum is known better.
    let exact = request.end - request.first;
    let scale = match !request.stopped && sum > 0.0 && (exact / sum - 1.0).abs() < 0.01 {
        true => exact / sum,
        false => 1.0,
    };
    let mut times = vec![request.first];
    let mut at = request.first;
    for gap in gaps {
        at += gap * scale;
        times.push(at);
    }
    if request.stopped && request.decode > 0 {
        times.push(request.end);
    }
    times
}

/// The work between the times of each request to a server, whose passes nobody sees: what was in flight on
/// average. Each request gives two samples, until its first token and from then on.
pub(super) fn of_requests(recording: &Recording, steps: &[StepRecord]) -> Observed {
    let mut decoding = Integral::default();
    let mut context = Integral::default();
    let mut prompts = Integral::default();
    let mut prompt_context = Integral::default();
    for (_, request) in recording.requests() {
        let mean_context = request.prompt as f64 + request.decode as f64 / 2.0;
        decoding.add(request.first, request.end, 1.0);
        context.add(request.first, request.end, mean_context);
        let window = (request.first - request.start).max(1e-3);
        let computed = (request.prompt - request.reused) as f64;
        let before = request.reused as f64 + computed / 2.0;
        prompts.add(request.start, request.start + window, computed / window);
        prompt_context.add(
            request.start,
            request.start + window,
            computed * before / window,
        );
    }
    let integrals = [decoding, context, prompts, prompt_context].map(Integral::finish);
    let [decoding, context, prompts, prompt_context] = &integrals;
    let mut observed = Observed {
        alone: vec![Alone::default(); recording.items.len()],
        ..Observed::default()
    };
    for (item, request) in recording.requests() {
        observed.passes.push((
            Pass {
                passes: 1.0,
                prompt_rows: prompts.over(request.start, request.first),
                prompt_context: prompt_context.over(request.start, request.first),
                requests: 1.0,
                ..Pass::default()
            },
            request.first - request.start,
        ));
        // Chunks of a stream may hold several tokens of one pass.
        let gaps = recording.sources[item].map_or(0, |index| steps[index].gaps_ms.len());
        let passes = gaps as f64;
        let ms = request.end - request.first;
        if gaps == 0 || ms <= 0.0 {
            continue;
        }
        let at_once = decoding.over(request.first, request.end) / ms;
        observed.largest_batch = observed.largest_batch.max(at_once);
        observed.passes.push((
            Pass {
                passes,
                decoding: at_once,
                decode_rows: at_once * passes,
                decode_context: context.over(request.first, request.end) / ms * passes,
                prompt_rows: prompts.over(request.first, request.end),
                prompt_context: prompt_context.over(request.first, request.end),
                requests: 0.0,
            },
            ms,
        ));
    }
    observed
}

/// The integral of a step function over time.
#[derive(Default)]
struct Integral {
    changes: Vec<(f64, f64)>,
}

struct Integrated {
    /// Time, the integral up to it, and the value from it on.
    points: Vec<(f64, f64, f64)>,
}

impl Integral {
    fn add(&mut self, from: f64, to: f64, value: f64) {
        if to > from {
            self.changes.push((from, value));
            self.changes.push((to, -value));
        }
    }

    fn finish(mut self) -> Integrated {
        self.changes.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut points: Vec<(f64, f64, f64)> = Vec::with_capacity(self.changes.len());
        let (mut sum, mut value, mut at) = (0.0, 0.0, f64::NEG_INFINITY);
        for (time, change) in self.changes {
            if at.is_finite() {
                sum += value * (time - at);
            }
            value += change;
            at = time;
            points.push((time, sum, value));
        }
        Integrated { points }
    }
}

impl Integrated {
    fn over(&self, from: f64, to: f64) -> f64 {
        (self.until(to) - self.until(from)).max(0.0)
    }

    fn until(&self, time: f64) -> f64 {
        let after = self.points.partition_point(|(at, ..)| *at <= time);
        let before = after.checked_sub(1).map(|index| self.points[index]);
        before.map_or(0.0, |(at, sum, value)| sum + value * (time - at))
    }
}
