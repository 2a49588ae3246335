//! Every family of kernels against plain loops, bit for bit.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use std::io::Write;
use std::ops::Range;
use std::sync::Once;

use super::testing::Attention;
use super::*;

/// Random numbers of either sign, occasionally large.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    (0..count)
        .map(|_| {
            let bits = random.next_u32();
            let unit = (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
            if bits & 63 == 0 { unit * 30.0 } else { unit }
        })
        .collect()
}

/// Blocks of random bits, so that every quant and scale occurs, with f16 factors of ordinary size.
fn random_blocks(dtype: WeightType, seed: u64, rows: usize, cols: usize) -> Vec<u8> {
    let dense = numbers(seed, rows * cols).into_iter();
    match dtype {
        WeightType::F16 => {
            return dense
                .flat_map(|x| half::f32_to_f16(x).to_le_bytes())
                .collect();
        }
        // The upper half of each number.
        WeightType::BF16 => {
            return dense
                .flat_map(|x| [x.to_le_bytes()[2], x.to_le_bytes()[3]])
                .collect();
        }
        WeightType::F32 => return dense.flat_map(f32::to_le_bytes).collect(),
        _ => {}
    }
    let mut bytes = vec![0; rows * cols / dtype.block_columns() * dtype.block_bytes()];
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    random.fill_bytes(&mut bytes);
    let factors: &[usize] = match dtype {
        WeightType::Q4_0 | WeightType::Q5_0 | WeightType::Q8_0 => &[0],
        WeightType::Q6K => &[208],
        _ => &[0, 2],
    };
    for block in bytes.chunks_exact_mut(dtype.block_bytes()) {
        for &at in factors {
            let factor = ((random.next_u32() >> 16) as f32 / 65536.0 - 0.5) * 0.1;
            block[at..at + 2].copy_from_slice(&half::f32_to_f16(factor).to_le_bytes());
        }
    }
    bytes
}

fn packed(pool: &Pool, dtype: WeightType, rows: usize, cols: usize, seed: u64) -> PackedMatrix {
    let bytes = random_blocks(dtype, seed, rows, cols);
    PackedMatrix::pack_rows(pool, dtype, (rows, cols), &bytes, &|row| row).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Reference quantisation of one block.
fn quantized(values: &[f32]) -> ActivationBlock {
    let mut block = ActivationBlock::default();
    let largest = values.iter().fold(f32::MIN, |max, x| max.max(*x));
    let smallest = values.iter().fold(f32::MAX, |min, x| min.min(*x));
    let magnitude = largest.max(-smallest);
    if magnitude >= 1e-30 {
        block.scale = match largest == magnitude {
            true => (largest / 127.0).max(-smallest / 113.0),
            false => -(-smallest / 127.0).max(largest / 113.0),
        };
        let inverse = 1.0 / block.scale;
        for (quant, x) in block.quants.iter_mut().zip(values) {
            *quant = (x * inverse).round_ties_even() as i8;
        }
    }
    let sum = |quants: &[i8]| quants.iter().map(|&q| i32::from(q)).sum::<i32>();
    block.scaled_sum = block.scale * sum(&block.quants) as f32;
    block.offset = (-8 * sum(&block.quants)).try_into().unwrap();
    block.offset_high = (-8 * sum(&block.quants[16..])).try_into().unwrap();
    let pairs = block.quants[..12].iter().zip(&block.quants[16..28]);
    let pairs = pairs.map(|(&low, &high)| (i32::from(low), i32::from(high)));
    block.pairing = -pairs
        .map(|(low, high)| low * high + 113 * low - 15 * high)
        .sum::<i32>();
    block
}

/// Reference output of a product.
fn output(weights: &PackedMatrix, row: usize, values: &[f32]) -> f32 {
    let mut output = 0f32;
    if weights.format.is_dense() {
        let mut dense = vec![0.0; weights.cols];
        weights.row(row, &mut dense);
        let segment = product::segment_columns(weights.cols);
        for (weights, values) in dense.chunks(segment).zip(values.chunks(segment)) {
            let pairs = weights.iter().zip(values);
            output += pairs.fold(0f32, |sum, (weight, value)| weight.mul_add(*value, sum));
        }
        return output;
    }
    for (index, values) in values.chunks(BLOCK).enumerate() {
        let input = quantized(values);
        let (quants, scales, min) = weights.block(row, index);
        let dot = |columns: Range<usize>| -> f32 {
            columns
                .map(|k| i32::from(quants[k]) * i32::from(input.quants[k]))
                .sum::<i32>() as f32
        };
        if weights.format == Format::U8Half {
            output = dot(0..16).mul_add(scales[0] * input.scale, output);
            output = dot(16..32).mul_add(scales[1] * input.scale, output);
        } else {
            output = dot(0..32).mul_add(scales[0] * input.scale, output);
        }
        if weights.format.has_min() {
            output = min.mul_add(input.scaled_sum, output);
        }
    }
    output
}

/// The product computed by some kernels, as the forward pass does it.
fn multiply(kernels: Kernels, pool: &Pool, weights: &PackedMatrix, values: &[f32]) -> Vec<f32> {
    let tokens = values.len() / weights.cols;
    let mut blocks = vec![ActivationBlock::default(); values.len() / BLOCK];
    if !weights.format.is_dense() {
        kernels.quantize(values, &mut blocks);
    }
    let mut output = vec![f32::NAN; tokens * weights.rows];
    let input = Input {
        tokens,
        values,
        blocks: &blocks,
    };
    let output_slice = &mut output;
    let mut products = [Product {
        weights,
        output: output_slice,
    }];
    let next = Matrices::Each(&[weights]);
    kernels.matmul(pool, &mut products, input, next, None);
    output
}

#[test]
fn a_wrong_shape_is_an_error() {
    let pool = Pool::new(1).unwrap();
    let pack = |dtype, shape, bytes: &[u8]| {
        PackedMatrix::pack_rows(&pool, dtype, shape, bytes, &|row| row).err()
    };
    assert!(matches!(
        pack(WeightType::Q4_0, (1, 48), &[0; 27]),
        Some(PackError::Columns { .. })
    ));
    assert!(matches!(
        pack(WeightType::Q4_0, (1, 32), &[0; 17]),
        Some(PackError::Bytes { expected: 18, .. })
    ));
}

/// Says on stderr, past the test harness's capture, that a family's tests have nothing to test.
fn report_skipped(isa: Isa) {
    let family = format!("{isa:?}").to_lowercase();
    let missing = isa.missing_features().join(", ");
    let line = format!("skipped: {family}: this processor lacks {missing}\n");
    // `eprintln!` would be captured, and shown for failed tests only.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// The properties that hold for each family, as a module of tests each.
macro_rules! each_family {
    ($($(#[$attribute:meta])* $name:ident = $isa:expr;)*) => {
        $(
            $(#[$attribute])*
            mod $name {
                use super::*;

                fn kernels() -> Option<Kernels> {
                    static SKIPPED: Once = Once::new();
                    let kernels = Kernels::of($isa);
                    if kernels.is_none() {
                        SKIPPED.call_once(|| report_skipped($isa));
                    }
                    kernels
                }

                #[test]
                fn quantizes_like_the_reference() {
                    let Some(kernels) = kernels() else { return };
                    quantize_property(kernels);
                }

                #[test]
                fn multiplies_like_the_reference() {
                    let Some(kernels) = kernels() else { return };
                    product_property(kernels);
                }

                #[test]
                fn non_finite_input_affects_only_its_token() {
                    let Some(kernels) = kernels() else { return };
                    non_finite_property(kernels);
                }

                #[test]
                fn swiglu_equals_its_single_steps() {
                    let Some(kernels) = kernels() else { return };
                    swiglu_property(kernels);
                }

                #[test]
                fn results_do_not_depend_on_the_split() {
                    let Some(kernels) = kernels() else { return };
                    split_property(kernels);
                }

                #[test]
                fn vector_operations_match_the_reference() {
                    let Some(kernels) = kernels() else { return };
                    vector_property(kernels);
                }

                #[test]
                fn attends_like_the_reference() {
                    let Some(kernels) = kernels() else { return };
                    attention_property(kernels);
                }
            }
        )*
    };
}

each_family! {
    scalar_family = Isa::Scalar;
    #[cfg(target_arch = "x86_64")]
    avx2_family = Isa::Avx2;
    #[cfg(target_arch = "x86_64")]
    avx_vnni_family = Isa::AvxVnni;
    #[cfg(target_arch = "x86_64")]
    avx512_family = Isa::Avx512;
    #[cfg(target_arch = "x86_64")]
    avx512_paired_family = Isa::Avx512Paired;
    scalar_paired_family = Isa::ScalarPaired;
    #[cfg(target_arch = "aarch64")]
    neon_dot_family = Isa::NeonDot;
    #[cfg(target_arch = "aarch64")]
    neon_family = Isa::Neon;
}

fn non_finite_property(kernels: Kernels) {
    let (rows, cols) = (37, 256);
    let pool = Pool::new(2).unwrap();
    for dtype in WeightType::ALL {
        let weights = packed(&pool, dtype, rows, cols, 5);
        for tokens in [3, 61] {
            for (bad, at) in [
                (f32::INFINITY, 70),
                (f32::NEG_INFINITY, 90),
                (f32::NAN, 64),
                (f32::NAN, 95),
                (f32::NAN, 3),
            ] {
                let mut values = numbers(8, tokens * cols);
                values[cols..cols + BLOCK].fill(0.0);
                values[cols + at] = bad;
                let found = multiply(kernels, &pool, &weights, &values);
                for (token, found) in found.chunks(rows).enumerate() {
                    let finite = found.iter().filter(|x| x.is_finite()).count();
                    let expected = if token == 1 { 0 } else { rows };
                    assert_eq!(finite, expected, "{dtype:?}, token {token} of {tokens}");
                }
            }
        }
    }
}

fn swiglu_property(kernels: Kernels) {
    let pool = Pool::new(2).unwrap();
    for dtype in [WeightType::Q4_1, WeightType::Q8_0, WeightType::F16] {
        for (rows, cols) in [(32, 64), (37, 256), (160, 256)] {
            for (tokens, biased) in [(1, false), (3, true), (61, false), (130, true)] {
                let matrices = [1, 2].map(|seed| packed(&pool, dtype, rows, cols, seed));
                let values = numbers(7, tokens * cols);
                let biases = [3, 4].map(|seed| numbers(seed, rows));
                let bias = |index: usize| biased.then_some(&biases[index][..]);

                let mut steps = [0, 1].map(|index| {
                    let mut output = multiply(kernels, &pool, &matrices[index], &values);
                    for row in output.chunks_mut(rows) {
                        if let Some(bias) = bias(index) {
                            kernels.add(row, bias);
                        }
                    }
                    output
                });
                let [expected, up] = &mut steps;
                kernels.silu_mul(expected, up);
                let count = match rows.is_multiple_of(BLOCK) {
                    true => tokens * rows / BLOCK,
                    false => 0,
                };
                let mut expected_blocks = vec![ActivationBlock::default(); count];
                if count > 0 {
                    kernels.quantize(expected, &mut expected_blocks);
                }

                let mut input_blocks = vec![ActivationBlock::default(); values.len() / BLOCK];
                kernels.quantize(&values, &mut input_blocks);
                let (mut gate, mut up) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
                let mut blocks = vec![ActivationBlock::default(); count];
                let product = |index: usize, output| Product {
                    weights: &matrices[index],
                    output,
                };
                let gated = Swiglu {
                    gate: product(0, &mut gate),
                    up: product(1, &mut up),
                    gate_bias: bias(0),
                    up_bias: bias(1),
                    blocks: &mut blocks,
                };
                let input = Input {
                    tokens,
                    values: &values,
                    blocks: &input_blocks,
                };
                kernels.matmul_swiglu(&pool, gated, input, Matrices::Each(&[]), None);
                assert_eq!(bits(&gate), bits(expected), "{dtype:?}, {tokens} × {rows}");
                assert_eq!(blocks, expected_blocks);
            }
        }
    }
}

fn quantize_property(kernels: Kernels) {
    // Four blocks at a time, and the rest one by one.
    let mut values = numbers(1, 67 * BLOCK);
    values[..BLOCK].fill(0.0);
    values[BLOCK..2 * BLOCK].fill(1e-38);
    values[2 * BLOCK] = 3e38;
    values[3 * BLOCK..4 * BLOCK].fill(-2.5);
    // Boundary cases: the threshold for zero, the largest float, and ratios near the limit for the
    // other sign.
    let edge = 113.0f32 / 127.0;
    let pairs = [1e-30f32.next_down(), 1e-30, 1.0, f32::MAX].into_iter();
    let pairs = pairs.flat_map(|largest| {
        let others = [edge.next_down(), edge, edge.next_up(), 1.0];
        others.into_iter().flat_map(move |other| {
            let other = -largest * other;
            [(largest, other), (-largest, -other)]
        })
    });
    for (block, (one, other)) in values[32 * BLOCK..].chunks_mut(BLOCK).zip(pairs) {
        block.fill(0.0);
        block[17] = one;
        block[4] = other;
    }
    let mut blocks = vec![ActivationBlock::default(); 67];
    kernels.quantize(&values, &mut blocks);
    for (block, values) in blocks.iter().zip(values.chunks(BLOCK)) {
        assert_eq!(*block, quantized(values));
        assert!(block.quants.iter().all(|quant| *quant >= -113));
    }
}

fn product_property(kernels: Kernels) {
    let mut random = ChaCha8Rng::seed_from_u64(17);
    let mut below = |end: usize| (random.next_u32() as usize) % end;
    for dtype in WeightType::ALL {
        // Whole super-blocks; whole blocks (576: the default model's width); any number of columns for
        // dense weights. Then random shapes.
        let mut shapes = vec![(1, 256), (16, 512), (70, 256), (200, 1024), (37, 2304)];
        shapes.extend([(33, 576), (48, 96), (19, 37), (3, 1), (5, 259)]);
        shapes.extend((0..6).map(|_| (1 + below(90), dtype.block_columns() * (1 + below(9)))));
        if cfg!(miri) {
            shapes = vec![(17, dtype.block_columns().max(BLOCK))];
        }
        shapes.retain(|(_, cols)| cols.is_multiple_of(dtype.block_columns()));
        for (rows, cols) in shapes {
            let pool = Pool::new(1 + below(3)).unwrap();
            let weights = packed(&pool, dtype, rows, cols, rows as u64);
            let mut batches = vec![1, 2, 5, 6, 7, 13, 1 + below(40), 48 + below(40)];
            if cfg!(miri) {
                // A product of 48 tokens takes minutes. One type is enough for the path for many.
                batches = match dtype {
                    WeightType::Q4_1 => vec![1, 2, crate::winograd::MIN_TOKENS],
                    _ if cols <= BLOCK => vec![1, 2],
                    _ => vec![1],
                };
            }
            for tokens in batches {
                let values = numbers(tokens as u64, tokens * cols);
                let found = multiply(kernels, &pool, &weights, &values);
                for (values, found) in values.chunks(cols).zip(found.chunks(rows)) {
                    let expected: Vec<f32> =
                        (0..rows).map(|row| output(&weights, row, values)).collect();
                    assert_eq!(bits(found), bits(&expected), "{dtype:?} {rows} × {cols}");
                }
            }
        }
    }
}

fn split_property(kernels: Kernels) {
    let (one, three) = (Pool::new(1).unwrap(), Pool::new(3).unwrap());
    for dtype in WeightType::ALL {
        // Long enough for two stretches of tokens, and in one case for two panels of weights.
        let cols = if dtype == WeightType::Q4_1 { 2304 } else { 512 };
        let rows = 300;
        let token_bytes = cols / BLOCK * size_of::<ActivationBlock>();
        let tokens = multiply::TOKENS_BYTES / token_bytes + 100;
        let weights = packed(&one, dtype, rows, cols, 3);
        let values = numbers(9, tokens * cols);
        let together = multiply(kernels, &three, &weights, &values);
        for token in [0, 1, tokens / 2 - 1, tokens / 2, tokens - 1] {
            let alone = multiply(kernels, &one, &weights, &values[token * cols..][..cols]);
            assert_eq!(bits(&alone), bits(&together[token * rows..][..rows]));
        }
    }
}

/// Reference `e^x`, with the operations of `Simd::exp`.
pub(super) fn exp(x: f32) -> f32 {
    let x = x.clamp(-86.6, 88.0);
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let r = n.mul_add(2.121_944_4e-4, n.mul_add(-0.693_359_4, x));
    let p = 1.987_569_1e-4f32
        .mul_add(r, 1.398_2e-3)
        .mul_add(r, 8.333_452e-3)
        .mul_add(r, 4.166_579_6e-2)
        .mul_add(r, 1.666_666_5e-1)
        .mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    f32::from_bits(y.to_bits().wrapping_add((n as i32 as u32) << 23))
}

/// A sum over sixteen running lanes, then over lanes 8, 4, 2 and 1 apart.
fn lane_sum(terms: &[f32], step: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    for (index, term) in terms.iter().enumerate() {
        lanes[index % 16] = step(*term, lanes[index % 16]);
    }
    for half in [8, 4, 2, 1] {
        for lane in 0..half {
            lanes[lane] += lanes[lane + half];
        }
    }
    lanes[0]
}

#[test]
fn the_reference_exp_is_accurate() {
    for step in -86_000..=88_000 {
        let x = step as f32 / 1000.0;
        let exact = f64::from(x).exp();
        assert!((f64::from(exp(x)) / exact - 1.0).abs() < 1.8e-7, "e^{x}");
    }
}

fn vector_property(kernels: Kernels) {
    for len in [1, 15, 16, 17, 64, 576, 1000] {
        let (x, y) = (numbers(1, len), numbers(2, len));
        let mut found = vec![0.0; len];

        kernels.rms_norm(&x, &y, 1e-5, &mut found);
        let mean = lane_sum(&x, |x, sum| x.mul_add(x, sum)) / len as f32;
        let scale = 1.0 / (mean + 1e-5).sqrt();
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, w)| x * scale * w).collect();
        assert_eq!(bits(&found), bits(&expected), "rms_norm of {len}");

        found.copy_from_slice(&x);
        kernels.add(&mut found, &y);
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| x + y).collect();
        assert_eq!(bits(&found), bits(&expected), "add of {len}");

        found.copy_from_slice(&x);
        kernels.silu_mul(&mut found, &y);
        let silu = |x: f32| x / (1.0 + exp(0.0 - x));
        let expected: Vec<f32> = x.iter().zip(&y).map(|(x, y)| silu(*x) * y).collect();
        assert_eq!(bits(&found), bits(&expected), "silu_mul of {len}");

        let half = len / 2;
        let (cos, sin) = (numbers(3, half), numbers(4, half));
        let turn = |a: f32, b: f32, i: usize| {
            let first = (0.0 - b).mul_add(sin[i], a * cos[i]);
            (first, a.mul_add(sin[i], b * cos[i]))
        };
        let mut neox = x.clone();
        for i in 0..half {
            (neox[i], neox[i + half]) = turn(x[i], x[i + half], i);
        }
        found.copy_from_slice(&x);
        kernels.rope_neox(&mut found, &cos, &sin);
        assert_eq!(bits(&found), bits(&neox), "rope_neox of {len}");
    }
}

/// Integers and the scale that converts them back.
struct Whole {
    numbers: Vec<i32>,
    scale: f32,
}

/// Reference quantisation of a head to integers of at most `max` in magnitude.
fn whole(numbers: &[f32], max: f32) -> Whole {
    let numbers = numbers.iter().map(|x| x.clamp(-1e30, 1e30));
    let largest = numbers.clone().fold(0f32, |max, x| max.max(x.abs()));
    let (scale, inverse) = match largest < 1e-30 {
        true => (0.0, 0.0),
        false => (largest / max, max / largest),
    };
    Whole {
        numbers: numbers
            .map(|x| (x * inverse).round_ties_even() as i32)
            .collect(),
        scale,
    }
}

/// A layer with random tokens on shuffled pages: the memory, the page table, and the keys and values as
/// stored, `[tokens, kv_heads]` heads.
struct Context {
    memory: KvMemory,
    pages: Vec<u32>,
    keys: Vec<Whole>,
    values: Vec<Whole>,
}

fn context(kernels: Kernels, shape: KvShape, tokens: usize) -> Context {
    let used = tokens.div_ceil(PAGE);
    // Every second page, backwards.
    let pages: Vec<u32> = (0..used as u32).rev().map(|page| 2 * page + 1).collect();
    let mut memory = KvMemory::new(shape, 2, 2 * used);
    let size = shape.kv_heads * shape.head_size;
    let (mut keys, mut values) = (numbers(11, tokens * size), numbers(12, tokens * size));
    let numbers_of_last = values.len() - shape.head_size;
    values[0] = 1e9;
    // A zero key, a zero value, and a number that has to be clamped.
    keys[..shape.head_size].fill(0.0);
    values[numbers_of_last..].fill(1e-35);
    values[numbers_of_last / 2] = f32::NEG_INFINITY;
    let slots: Vec<_> = (0..tokens)
        .map(|token| (pages[token / PAGE], token % PAGE))
        .collect();
    let pool = Pool::new(2).unwrap();
    // Some in one call, others one by one.
    let (first, rest) = slots.split_at(tokens / 2);
    let at = first.len() * size;
    let first = &SlotMapping::new(first.to_vec());
    kernels.write_kv(&pool, &mut memory, 1, first, &keys[..at], &values[..at]);
    for (place, at) in rest.iter().zip((at..).step_by(size)) {
        let (key, value) = (&keys[at..at + size], &values[at..at + size]);
        let place = SlotMapping::new(vec![*place]);
        kernels.write_kv(&pool, &mut memory, 1, &place, key, value);
    }
    let kept = |numbers: &[f32]| {
        let heads = numbers.chunks(shape.head_size);
        heads.map(|head| whole(head, 4095.0)).collect()
    };
    Context {
        memory,
        pages,
        keys: kept(&keys),
        values: kept(&values),
    }
}

/// Reference result of one query.
fn attended(context: &Context, kv_head: usize, query: &[f32], position: usize) -> Vec<f32> {
    let KvShape {
        kv_heads,
        head_size,
    } = context.memory.shape();
    let terms = head_size.next_multiple_of(2) as i64;
    let limit = i64::from(i32::MAX) / (terms * 4095);
    let query = whole(query, limit.min(32767) as f32);
    let factor = query.scale * (1.0 / (head_size as f32).sqrt());
    let at = |token: usize| token * kv_heads + kv_head;
    let (mut max, mut sums) = (f32::NEG_INFINITY, [0f32; 16]);
    let mut output = vec![0f32; head_size];
    for first in (0..=position).step_by(SPAN) {
        let seen: Vec<usize> = (first..(first + SPAN).min(position + 1)).collect();
        let scores: Vec<f32> = seen
            .iter()
            .map(|token| {
                let key = &context.keys[at(*token)];
                let pairs = query.numbers.iter().zip(&key.numbers);
                let sum: i64 = pairs.map(|(q, k)| i64::from(*q) * i64::from(*k)).sum();
                i32::try_from(sum).unwrap() as f32 * key.scale
            })
            .collect();
        let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let larger = max.max(largest * factor);
        let powers: Vec<f32> = scores
            .iter()
            .map(|score| exp(score.mul_add(factor, -larger).min(0.0)))
            .collect();
        let decay = if max == f32::NEG_INFINITY {
            0.0
        } else {
            exp(max - larger)
        };
        let mut block = [0f32; 16];
        for (token, power) in powers.iter().enumerate() {
            block[token % 16] += power;
        }
        for (sum, block) in sums.iter_mut().zip(block) {
            *sum = sum.mul_add(decay, block);
        }
        max = larger;
        let values: Vec<&Whole> = seen
            .iter()
            .map(|token| &context.values[at(*token)])
            .collect();
        let scale = values.iter().fold(0f32, |max, value| max.max(value.scale));
        let inverse = if scale == 0.0 { 0.0 } else { 32767.0 / scale };
        let powers: Vec<i32> = powers
            .iter()
            .zip(&values)
            .map(|(power, value)| (power * (value.scale * inverse)).round_ties_even() as i32)
            .collect();
        for (d, output) in output.iter_mut().enumerate() {
            *output *= decay;
            for (powers, values) in powers.chunks(PAGE).zip(values.chunks(PAGE)) {
                let pairs = powers.iter().zip(values);
                let sum: i64 = pairs
                    .map(|(power, value)| i64::from(*power) * i64::from(value.numbers[d]))
                    .sum();
                let sum = i32::try_from(sum).unwrap() as f32;
                *output = sum.mul_add(scale / 32767.0, *output);
            }
        }
    }
    let sum = lane_sum(&sums, |x, sum| x + sum);
    output.iter().map(|x| x * (1.0 / sum) + 0.0).collect()
}

fn attention_property(kernels: Kernels) {
    let mut random = ChaCha8Rng::seed_from_u64(23);
    let mut below = |end: usize| (random.next_u32() as usize) % end;
    let mut cases: Vec<(usize, usize, usize, Vec<usize>)> =
        [(3, 64), (1, 128), (2, 80), (2, 6), (1, 256)]
            .map(|(kv_heads, head_size)| {
                let positions = vec![0, 1, 15, 16, 63, 64, 65, 100, 127, 128, 191, 192, 202];
                (kv_heads, head_size, 203, positions)
            })
            .into();
    for _ in 0..20 {
        let tokens = 1 + below(400);
        let positions = (0..1 + below(30)).map(|_| below(tokens)).collect();
        cases.push((1 + below(4), 2 * (1 + below(70)), tokens, positions));
    }
    for (kv_heads, head_size, tokens, positions) in cases {
        let shape = KvShape {
            kv_heads,
            head_size,
        };
        let context = context(kernels, shape, tokens);
        let splits = [below(4), below(4)].map(|blocks| (blocks * SPAN).min(tokens / SPAN * SPAN));
        let (first, second) = (splits[0].min(splits[1]), splits[0].max(splits[1]));
        let input = numbers(13, positions.len() * head_size);
        let queries: Vec<Query> = positions
            .iter()
            .enumerate()
            .map(|(index, &position)| Query {
                at: index * head_size,
                position,
                state: index,
            })
            .collect();
        let attention = Attention {
            layer: context.memory.layer(1),
            kv_head: kv_heads - 1,
            pages: &context.pages,
            queries: &queries,
            scale: 1.0 / (head_size as f32).sqrt(),
            input: &input,
        };
        let attend = |queries: &[Query], steps: &[Range<usize>], output: &mut [f32]| {
            let some = Attention {
                queries,
                ..attention.clone()
            };
            kernels.attend(&some, steps, output);
        };

        let fresh = || vec![f32::NAN; input.len()];
        let (mut together, mut alone, mut in_steps) = (fresh(), fresh(), fresh());
        let all = 0..tokens;
        let all = std::slice::from_ref(&all);
        attend(&queries, all, &mut together);
        for query in &queries {
            let first = Query { state: 0, ..*query };
            attend(&[first], all, &mut alone);
        }
        let steps = [0..first, first..second, second..tokens];
        attend(&queries, &steps, &mut in_steps);
        for (index, &position) in positions.iter().enumerate() {
            let at = index * head_size..(index + 1) * head_size;
            let expected = bits(&attended(
                &context,
                kv_heads - 1,
                &input[at.clone()],
                position,
            ));
            assert_eq!(
                bits(&together[at.clone()]),
                expected,
                "{position} of {shape:?}"
            );
            assert_eq!(bits(&alone[at.clone()]), expected, "{position}, alone");
            assert_eq!(bits(&in_steps[at]), expected, "{position}, in steps");
        }
    }
}
