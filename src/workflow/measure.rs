//! Turns what was observed of a request or an evaluation into its record.

use super::in_flight::InFlight;
use crate::engine::Completion;
use crate::evaluate::Finished;
use crate::hash::token_hash;
use crate::metrics;
use crate::record::evaluation::EvaluationRecord;
use crate::record::{RECORD_SCHEMA, StepRecord, TokenCounts};
use crate::stopwatch::Moment;
use crate::units::Millis;

/// The measurements of a request that ended at `now`. The caller sets what identifies it.
pub(super) fn generation(
    request: &InFlight,
    completion: &Completion,
    now: Moment,
    origin: Moment,
) -> StepRecord {
    let latency = now.since(request.submitted);
    let ttft = request.tokens.first().copied();
    let queue = (request.started).map(|moment| moment.since(request.submitted));
    let count = completion.decode_tokens();
    let served = completion.served.as_ref();
    let (tpot, burst) = match served {
        None => {
            let tpot = (ttft.filter(|_| count > 1))
                .map(|ttft| Millis((latency - ttft).0 / (count - 1) as f64));
            (tpot, false)
        }
        Some(served) => {
            let streamed = metrics::streamed(&request.tokens, served.streamed_tokens);
            (streamed.tpot, streamed.burst || served.one_piece)
        }
    };
    let (gaps_ms, itl_ms) = metrics::gaps(&request.tokens);
    StepRecord {
        schema: RECORD_SCHEMA,
        start_ms: request.submitted.since(origin),
        queue_ms: queue,
        latency_ms: latency,
        ttft_ms: ttft,
        tpot_ms: tpot,
        itl_ms,
        gaps_ms,
        prefill_tokens_per_s: (ttft.zip(queue))
            .and_then(|(ttft, queue)| rate(completion.prefill_tokens, ttft - queue)),
        decode_tokens_per_s: tpot.and_then(|tpot| rate(1, tpot)),
        tokens: TokenCounts {
            prompt: completion.prompt_tokens,
            prefill: completion.prefill_tokens,
            reused: completion.reused_tokens,
            decode: count,
            drafted: completion.drafted_tokens,
            accepted: completion.accepted_tokens,
        },
        finish: completion.finish.as_str().to_owned(),
        out_hash: token_hash(&completion.tokens),
        output: completion.text.clone(),
        attempts: served.map(|served| served.attempts),
        counted_by: served.map(|served| served.counted_by.to_owned()),
        reasoning_tokens: served.and_then(|served| served.reasoning_tokens),
        hidden_tokens: served.and_then(|served| served.hidden_tokens),
        burst,
        gaps_between: served.map(|_| "chunks".to_owned()),
        ..StepRecord::default()
    }
}

/// Where the time of an evaluation went. The caller sets the overlap.
pub(super) fn evaluation(finished: &Finished) -> EvaluationRecord {
    let times = &finished.times;
    EvaluationRecord {
        waited_ms: times.waited.into(),
        start_up_ms: times.start_up.into(),
        run_ms: times.run.into(),
        stop_ms: times.stop.into(),
        validate_ms: times.validate.into(),
        cpu_ms: times.cpu.into(),
        overlap_ms: Millis::default(),
        attempts: finished.attempts,
    }
}

/// Per second; `None` if count or time is zero.
fn rate(count: usize, time: Millis) -> Option<f64> {
    (count > 0 && time.0 > 0.0).then(|| count as f64 / time.seconds())
}
