//! Speeds of the kernels: `cargo bench -p flowbench-kernels [NAME]`, where NAME is a part of one of
//! `products`, `attention`, `decoding_attention`, `vectors`, `pool` and `packing`.
//!
//! Each figure is the best, or the tenth percentile, of many short runs, so that a busy machine
//! disturbs it little. `ISA=avx2` chooses another family than the fastest, `ONLY=Q4_1` one weight
//! type of `products`.

#![expect(clippy::print_stdout, reason = "a report for whoever runs it")]
#![expect(clippy::unwrap_used, reason = "a benchmark may panic")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use flowbench_kernels::{
    ActivationBlock, AttentionPart, AttentionPlan, BLOCK, Input, Isa, Kernels, KvMemory, KvShape,
    KvSpan, Matrices, PAGE, PackedMatrix, Pool, Product, Query, SlotMapping, WeightType,
    measure_ceilings,
};

/// The default model's keys and values.
const SHAPE: KvShape = KvShape {
    kv_heads: 3,
    head_size: 64,
};

fn main() {
    // Cargo adds `--bench`.
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let filter = filter.unwrap_or_default();
    let benches: [(&str, fn()); 6] = [
        ("products", products),
        ("attention", attention),
        ("decoding_attention", decoding_attention),
        ("vectors", vectors),
        ("pool", pool),
        ("packing", packing),
    ];
    for (name, bench) in benches {
        if name.contains(&filter) {
            println!("== {name}");
            bench();
        }
    }
}

/// The shortest of some runs, in seconds.
fn best(runs: usize, mut run: impl FnMut()) -> f64 {
    (0..runs)
        .map(|_| {
            let start = Instant::now();
            run();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn weights(pool: &Pool, dtype: WeightType, rows: usize, cols: usize) -> PackedMatrix {
    let bytes = vec![0x21; rows * cols / dtype.block_columns() * dtype.block_bytes()];
    PackedMatrix::pack_rows(pool, dtype, (rows, cols), &bytes, &|row| row).unwrap()
}

/// The family that `ISA` names (`avx2`), or the fastest.
fn chosen() -> Kernels {
    let name = std::env::var("ISA").unwrap_or_default();
    let isa = Isa::ALL
        .iter()
        .find(|isa| format!("{isa:?}").eq_ignore_ascii_case(&name));
    isa.and_then(|isa| Kernels::of(*isa))
        .unwrap_or_else(Kernels::best)
}

fn products() {
    let kernels = chosen();
    let start = Instant::now();
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        let ceilings = measure_ceilings(threads, &|| start.elapsed().as_secs_f64()).unwrap();
        let (read, ceiling) = (ceilings.read_gb_s * 1e9, ceilings.int8_gmac_s * 1e9);
        println!(
            "{:?}, {threads} threads; ceilings: read {:.1} GB/s, int8 {:.0} GMAC/s",
            kernels.isa(),
            ceilings.read_gb_s,
            ceilings.int8_gmac_s
        );
        for (dtype, rows, cols) in [
            (WeightType::Q4_1, 576, 576),
            (WeightType::Q4_1, 192, 576),
            (WeightType::Q4_1, 1536, 576),
            (WeightType::Q4_1, 576, 1536),
            (WeightType::Q4_0, 1536, 576),
            (WeightType::Q4K, 1536, 512),
            (WeightType::Q6K, 1536, 512),
            (WeightType::Q8_0, 49152, 576),
            (WeightType::F16, 1536, 576),
            (WeightType::BF16, 1536, 576),
            (WeightType::BF16, 2048, 2048),
            (WeightType::F32, 1536, 576),
        ] {
            if std::env::var("ONLY").is_ok_and(|only| only != format!("{dtype:?}")) {
                continue;
            }
            // As many matrices as fill 66 MB, in turn: as cold as the model's layers are.
            let copies =
                66_000_000usize.div_ceil(rows * cols * dtype.block_bytes() / dtype.block_columns());
            let layers: Vec<_> = (0..copies)
                .map(|_| weights(&pool, dtype, rows, cols))
                .collect();
            print!("{dtype:?} {rows:>5} × {cols:<4}");
            for tokens in [1, 2, 4, 8, 25, 128, 512] {
                let values = vec![0.5; tokens * cols];
                let mut blocks = vec![ActivationBlock::default(); tokens * cols / BLOCK];
                kernels.quantize(&values, &mut blocks);
                let mut output = vec![0.0; tokens * rows];
                let input = Input {
                    tokens,
                    values: &values,
                    blocks: &blocks,
                };
                let mut times = Vec::new();
                let start = Instant::now();
                while start.elapsed().as_millis() < 60 || times.len() < 20 {
                    let (weights, output) = (&layers[times.len() % copies], &mut output[..]);
                    let next = [&layers[(times.len() + 1) % copies]];
                    times.push(best(1, || {
                        kernels.matmul(
                            &pool,
                            &mut [Product { weights, output }],
                            input,
                            Matrices::Each(&next),
                            None,
                        );
                    }));
                }
                times.sort_by(f64::total_cmp);
                let seconds = times[times.len() / 10];
                let work = (rows * cols * tokens) as f64 / seconds;
                if tokens == 1 {
                    let bytes = layers[0].bytes() as f64 / seconds;
                    print!(
                        "  n=1 {:.1} GB/s ({:.0} %)",
                        bytes / 1e9,
                        100.0 * bytes / read
                    );
                } else {
                    let share = 100.0 * work / ceiling;
                    print!("  n={tokens} {:.1} ({share:.0} %)", work / 1e9);
                }
            }
            println!("  GMAC/s");
        }
    }
}

/// Memory for `pages` pages in each of `layers` layers.
fn kv_memory(layers: usize, pages: usize) -> KvMemory {
    let mut memory = KvMemory::reserve(SHAPE, layers, pages).unwrap();
    memory.provide(pages).unwrap();
    memory
}

fn attention() {
    let kernels = chosen();
    let pool = Pool::new(1).unwrap();
    let tokens = 512;
    let memory = kv_memory(1, tokens / PAGE);
    let pages: Vec<u32> = (0..(tokens / PAGE) as u32).collect();
    for count in [3, 6, 75] {
        let input = vec![0.01; SHAPE.kv_heads * count * 64];
        let mut output = vec![0.0; input.len()];
        let parts = (0..SHAPE.kv_heads)
            .map(|kv_head| AttentionPart {
                kv_head,
                queries: (0..count)
                    .map(|state| Query {
                        at: (kv_head * count + state) * 64,
                        position: tokens - 1,
                        state,
                    })
                    .collect(),
                spans: vec![KvSpan {
                    pages: &pages,
                    positions: 0..tokens,
                    queries: 0..count,
                }],
            })
            .collect();
        let plan = AttentionPlan::new(SHAPE, parts, 1);
        let seconds = best(200, || {
            kernels.attend_all(&pool, memory.layer(0), &plan, 0.125, &input, &mut output);
        });
        let work = (3 * count * tokens * 128) as f64;
        println!(
            "{count} queries × 3 heads × {tokens}: {:.1} µs, {:.0} GFMA/s",
            seconds * 1e6,
            work / seconds / 1e9
        );
    }
}

/// A batch that decodes, each sequence with its own 400 tokens, through 30 layers: what memory gives.
fn decoding_attention() {
    let kernels = chosen();
    let (sequences, tokens, layers) = (25, 416, 30);
    let pages = tokens / PAGE;
    let mut memory = kv_memory(layers, sequences * pages);
    // What was never written is not in memory yet.
    let slots =
        (0..sequences * pages).flat_map(|page| (0..PAGE).map(move |slot| (page as u32, slot)));
    let slots = SlotMapping::new(slots.collect());
    let kv = vec![0.25; sequences * tokens * SHAPE.kv_heads * SHAPE.head_size];
    let one = Pool::new(1).unwrap();
    for layer in 0..layers {
        kernels.write_kv(&one, &mut memory, layer, &slots, &kv, &kv);
    }
    let tables: Vec<Vec<u32>> = (0..sequences)
        .map(|sequence| {
            (0..pages)
                .map(|page| (sequence * pages + page) as u32)
                .collect()
        })
        .collect();
    let together = 7;
    let mut parts = Vec::new();
    for first in (0..sequences).step_by(together) {
        let some = first..(first + together).min(sequences);
        for kv_head in 0..3 {
            let queries = some.clone().flat_map(|sequence| {
                (0..3).map(move |head| (sequence * 9 + kv_head * 3 + head) * 64)
            });
            parts.push(AttentionPart {
                kv_head,
                queries: queries
                    .enumerate()
                    .map(|(state, at)| Query {
                        at,
                        position: tokens - 1,
                        state,
                    })
                    .collect(),
                spans: some
                    .clone()
                    .enumerate()
                    .map(|(index, sequence)| KvSpan {
                        pages: &tables[sequence],
                        positions: 0..tokens,
                        queries: index * 3..index * 3 + 3,
                    })
                    .collect(),
            });
        }
    }
    let input = vec![0.01; sequences * 576];
    let mut output = vec![0.0; sequences * 576];
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        let plan = AttentionPlan::new(SHAPE, parts.clone(), threads);
        let seconds = best(10, || {
            for layer in 0..layers {
                kernels.attend_all(
                    &pool,
                    memory.layer(layer),
                    &plan,
                    0.125,
                    &input,
                    &mut output,
                );
            }
        });
        let bytes = layers * sequences * pages * SHAPE.page_bytes();
        println!(
            "{sequences} × {tokens}, {threads} threads: {:.2} ms, {:.1} GB/s",
            seconds * 1e3,
            bytes as f64 / seconds / 1e9
        );
    }
}

fn vectors() {
    let kernels = chosen();
    let n = 576;
    let mut x = vec![0.5; 1536];
    let y = vec![0.25; 1536];
    let mut out = vec![0.0; 1536];
    let mut blocks = vec![ActivationBlock::default(); 1536 / BLOCK];
    let nanos = |seconds: f64| seconds * 1e9 / 100.0;
    let t = best(50, || {
        (0..100).for_each(|_| kernels.rms_norm(&x[..n], &y[..n], 1e-5, &mut out[..n]))
    });
    println!("rms_norm 576: {:.0} ns", nanos(t));
    let t = best(50, || {
        (0..100).for_each(|_| kernels.quantize(&x[..n], &mut blocks[..n / 32]))
    });
    println!("quantize 576: {:.0} ns", nanos(t));
    let t = best(50, || {
        (0..100).for_each(|_| kernels.add(&mut x[..n], &y[..n]))
    });
    println!("add 576: {:.0} ns", nanos(t));
    let t = best(50, || {
        (0..100).for_each(|_| kernels.rope_neox(&mut x[..64], &y[..32], &y[..32]))
    });
    println!("rope_neox 64: {:.0} ns", nanos(t));
    // The default model's vocabulary.
    let logits: Vec<f32> = (0..49_152).map(|i| (i % 1000) as f32 * -0.02).collect();
    let mut weights = vec![0; logits.len()];
    let t = best(500, || {
        kernels.softmax_weights(&logits, 0.0, 1.25, &mut weights)
    });
    println!("softmax_weights 49152: {:.1} µs", t * 1e6);
    let mut memory = kv_memory(1, 32);
    let slots: Vec<_> = (0..512)
        .map(|token| (token / 16, token as usize % 16))
        .collect();
    let kv = vec![0.25; 512 * 192];
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        for tokens in [1, 25, 512] {
            let kv = &kv[..tokens * 192];
            let mapping = SlotMapping::new(slots[..tokens].to_vec());
            let t = best(500, || {
                kernels.write_kv(&pool, &mut memory, 0, &mapping, kv, kv)
            });
            println!(
                "write_kv {tokens} × 3 × 64, {threads} threads: {:.2} µs",
                t * 1e6
            );
        }
    }
}

/// Parts that wait for each other, so that a run ends only when a worker has come.
fn pool() {
    use std::sync::atomic::{AtomicUsize, Ordering};

    let pool = Pool::new(2).unwrap();
    let meet = || {
        let met = AtomicUsize::new(0);
        pool.run(2, |_| {
            met.fetch_add(1, Ordering::Relaxed);
            while met.load(Ordering::Relaxed) < 2 {
                std::hint::spin_loop();
            }
        });
    };
    let report = |name: &str, pause: Duration| {
        let mut times: Vec<f64> = (0..200)
            .map(|_| {
                let start = Instant::now();
                while start.elapsed() < pause {
                    std::hint::spin_loop();
                }
                best(1, meet)
            })
            .collect();
        times.sort_by(f64::total_cmp);
        println!(
            "meeting a worker, {name}: best {:.2} µs, median {:.2} µs",
            times[0] * 1e6,
            times[100] * 1e6
        );
    };
    report("after 5 µs", Duration::from_micros(5));
    report("after 50 µs", Duration::from_micros(50));
    report("asleep", Duration::from_millis(2));
}

fn packing() {
    for threads in [1, 2] {
        let pool = Pool::new(threads).unwrap();
        for (dtype, rows, cols) in [
            (WeightType::Q4_1, 1536 * 100, 576),
            (WeightType::Q8_0, 49152, 576),
            (WeightType::Q4K, 1536 * 30, 512),
            (WeightType::Q6K, 1536 * 30, 512),
        ] {
            let bytes = vec![0x21; rows * cols / dtype.block_columns() * dtype.block_bytes()];
            let seconds = best(3, || {
                black_box(
                    PackedMatrix::pack_rows(&pool, dtype, (rows, cols), &bytes, &|row| row)
                        .unwrap(),
                );
            });
            println!(
                "{threads} threads, {dtype:?}: {:.1} ms, {:.2} GB/s",
                seconds * 1e3,
                bytes.len() as f64 / seconds / 1e9
            );
        }
    }
}
