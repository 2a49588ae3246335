//! Random sizes: every kernel in passes of 1 to 300 tokens, with widths and heads that fill no tile.

use super::*;

/// Which cases; the simulated GPU also takes it as the order of lanes, warps and blocks.
fn seed() -> u64 {
    let seed = std::env::var("SIMGPU_SEED").unwrap_or_default();
    seed.parse().unwrap_or(0)
}

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len() as u32) as usize]
}

/// A number from 1 to `most`, small ones as often as large ones.
fn size(random: &mut Random, most: u32) -> usize {
    let log = f64::from(most).ln() * f64::from(random.next() + 1.0) / 2.0;
    (log.exp() as usize).clamp(1, most as usize)
}

/// A model of random sizes, and the type of its weights.
fn tiny(random: &mut Random) -> (Tiny, GgmlDType) {
    let dtypes: Vec<GgmlDType> = QUANTISED.into_iter().chain(DENSE).collect();
    let dtype = pick(random, &dtypes);
    // Rows are whole blocks of the type.
    let block = dtype.block_size();
    let width = |random: &mut Random, most: usize| match block {
        1 => 2 * size(random, most as u32 / 2),
        block => block * (1 + random.below((most / block) as u32) as usize),
    };
    let family = pick(random, &["llama", "qwen2", "qwen3"]);
    let (kv_heads, head_size) = loop {
        let kv_heads = 1 + random.below(3) as usize;
        let head_size = pick(random, &[8, 16, 24, 32, 40, 64, 80, 96, 128, 256]);
        // For some number of heads to a KV head, the output's columns are whole blocks.
        if (1..=8).any(|group| (kv_heads * group * head_size).is_multiple_of(block)) {
            break (kv_heads, head_size);
        }
    };
    let heads = loop {
        let heads = kv_heads * (1 + random.below(8) as usize);
        if (heads * head_size).is_multiple_of(block) {
            break heads;
        }
    };
    let sizes = Tiny {
        hidden: width(random, 512),
        heads,
        kv_heads,
        head_size,
        rope_dimensions: head_size,
        intermediate: width(random, 512),
        vocabulary: 1 + size(random, 700),
        ..Tiny::new(family, true)
    };
    (sizes.filled(random.below(2) == 0), dtype)
}

fn sampling(random: &mut Random, seed: u64) -> Sampling {
    Sampling {
        temperature: pick(random, &[0.0, 0.3, 1.0, 2.0]),
        top_p: pick(random, &[1.0, 0.9, 0.2]),
        top_k: pick(random, &[0, 1, 7, 300]),
        seed,
    }
}

/// A sequence, which grows.
struct Line {
    tokens: Vec<u32>,
    start: usize,
    pages: Vec<u32>,
    sampler: Sampler,
}

const CONTEXT: usize = 480;

/// Prompts and decode passes of a random model, on the GPU and on the CPU.
fn compare(random: &mut Random, folder: &Path, case: u64) {
    let (tiny, dtype) = tiny(random);
    let what = format!(
        "case {case}: {dtype:?} {}, hidden {}, {} heads of {} to {}, intermediate {}, vocabulary {}",
        tiny.architecture,
        tiny.hidden,
        tiny.heads,
        tiny.head_size,
        tiny.kv_heads,
        tiny.intermediate,
        tiny.vocabulary
    );
    let path = tiny.write_gguf(folder, dtype);
    let Some(gpu) = gpu() else { return };
    let count = size(random, 9);
    let each = CONTEXT / PAGE;
    let mut ours = cuda(gpu, &path, count * each);
    let mut theirs = native(&path, 1, count * each);
    let mut lines: Vec<Line> = (0..count)
        .map(|index| {
            let length = size(random, 300) / count + 1;
            Line {
                tokens: random.tokens(length, tiny.vocabulary),
                start: 0,
                pages: (0..each)
                    .map(|page| (page * count + index) as u32)
                    .collect(),
                sampler: Sampler::new(sampling(random, index as u64)),
            }
        })
        .collect();
    for pass in 0..4 {
        // Some sequences pause; a prompt may come in two parts.
        let rows: Vec<usize> = (0..count).filter(|_| random.below(4) > 0).collect();
        let chunks: Vec<Chunk<'_>> = rows
            .iter()
            .map(|row| {
                let line = &lines[*row];
                let most = line.tokens.len();
                let take = if random.below(4) == 0 {
                    size(random, most as u32)
                } else {
                    most
                };
                Chunk {
                    slot: Slot(*row),
                    pages: &line.pages,
                    tokens: &line.tokens[..take],
                    start: line.start,
                    logits: take == most,
                }
            })
            .collect();
        if chunks.is_empty() {
            continue;
        }
        let ends: Vec<usize> = chunks
            .iter()
            .filter(|chunk| chunk.logits)
            .map(|c| c.slot.0)
            .collect();
        let expected = theirs.forward(&chunks).unwrap();
        let logits = ours.forward(&chunks).unwrap();
        assert_eq!(bits(&logits), bits(&expected), "{what}, pass {pass}");
        let parameters: Vec<_> = (ends.iter())
            .map(|row| lines[*row].sampler.clone().parameters())
            .collect();
        let sampled = ours.forward_sampled(&chunks, &parameters).unwrap();
        let done: Vec<(usize, usize)> = chunks
            .iter()
            .map(|chunk| (chunk.slot.0, chunk.tokens.len()))
            .collect();
        for (row, taken) in done {
            let line = &mut lines[row];
            line.start += taken;
            line.tokens.drain(..taken);
        }
        for ((row, logits), sampled) in ends.iter().zip(&expected).zip(sampled) {
            let line = &mut lines[*row];
            let token = line.sampler.next(logits);
            assert_eq!(sampled, token, "{what}, pass {pass}, sequence {row}");
            line.tokens.push(token.unwrap());
        }
    }
}

/// The same bits as the CPU's, for sizes that nobody chose.
#[test]
fn random_sizes_give_the_cpus_bits() {
    let folder = tempfile::tempdir().unwrap();
    let mut random = Random(seed() + 101);
    let cases = match std::env::var("SIMGPU_CHECKS").as_deref() {
        Ok("1") => 6,
        _ => 40,
    };
    for case in 0..cases {
        compare(&mut random, folder.path(), case);
    }
}
