//! The CUDA forward against the native one: the same bits.
//!
//! A process finds the driver when it starts. So [`on_the_simulated_gpu`] starts this program again, with the
//! simulated driver (`tests/simgpu`) and [`GPU`] set, for the tests in [`on_a_gpu`]. On a machine with a card:
//! `FLOWBENCH_TEST_GPU=1 cargo test --lib on_a_gpu -- --test-threads=1`.

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::Path;
use std::process::Command;

use candle_core::quantized::GgmlDType;

use super::*;
use crate::engine::Sampling;
use crate::engine::kernels::PAGE;
use crate::engine::model::native::tests::{DENSE, QUANTISED, native};
use crate::engine::model::testing::{Random, Tiny, write_gguf};
use crate::engine::sampler::Sampler;

/// Set where there is a GPU to test on.
const GPU: &str = "FLOWBENCH_TEST_GPU";

/// The GPU, if this process is to test on one.
fn gpu() -> Option<Gpu> {
    match std::env::var_os(GPU) {
        Some(_) => Some(Gpu::open().unwrap()),
        None => {
            eprintln!("skipped: {GPU} is not set");
            None
        }
    }
}

/// Runs this program's tests that match `filter` on the simulated GPU; `None`, and a line, where it cannot be
/// built (in CI: a failure). Set `SIMGPU_CHECKS=1` for its checks, which take minutes.
fn on_simulated(filter: &str, seed: u64) -> Option<String> {
    let script = Command::new("bash")
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .arg("scripts/simgpu.sh")
        .output()
        .unwrap();
    if !script.status.success() {
        let reason = String::from_utf8_lossy(&script.stderr);
        assert!(std::env::var_os("CI").is_none(), "{reason}");
        eprintln!("skipped: the simulated GPU cannot be built: {reason}");
        return None;
    }
    let folder = String::from_utf8(script.stdout).unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        // One after the other: what waits for the device breaks the recording of another's graph.
        .args([filter, "--test-threads=1"])
        .env("LD_LIBRARY_PATH", folder.trim())
        .env(GPU, "1")
        .env("SIMGPU_SEED", seed.to_string())
        .env("RUST_BACKTRACE", "0")
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{printed}{errors}");
    Some(printed.into_owned())
}

#[test]
fn on_the_simulated_gpu() {
    if let Some(printed) = on_simulated("on_a_gpu::", 0) {
        assert!(!printed.contains("ok. 0 passed"), "{printed}");
    }
}

/// The simulated GPU runs lanes, warps and blocks in another order, and the sizes are others.
#[test]
fn in_another_order_on_the_simulated_gpu() {
    for seed in [1, 2] {
        if let Some(printed) = on_simulated("on_a_gpu::sweep::", seed) {
            assert!(!printed.contains("ok. 0 passed"), "{printed}");
        }
    }
}

/// The profile is on for the rest of a process, so its test has one of its own.
#[test]
fn profiled_on_the_simulated_gpu() {
    if let Some(printed) = on_simulated("with_a_profile::", 0) {
        assert!(!printed.contains("ok. 0 passed"), "{printed}");
    }
}

fn cuda(gpu: Gpu, path: &Path, pages: usize) -> CudaModel {
    let file = GgufFile::open(path).unwrap();
    let mut model = CudaModel::from_gguf(&Arc::new(gpu), &file, &Limits::default()).unwrap();
    model.set_pages(pages).unwrap();
    model
}

fn bits(logits: &[Vec<f32>]) -> Vec<Vec<u32>> {
    let rows = logits.iter();
    rows.map(|row| row.iter().map(|x| x.to_bits()).collect())
        .collect()
}

/// Prompts of 1 to 70 tokens in one pass, with and without logits, then some decode passes.
fn same_bits(path: &Path, what: &str) {
    let Some(gpu) = gpu() else { return };
    const PAGES: usize = 60;
    let mut ours = cuda(gpu, path, PAGES);
    let mut theirs = native(path, 1, PAGES);
    let vocabulary = ours.decoder.spec.vocabulary;
    let mut random = Random(11);
    let lengths = [1usize, 16, 17, 40, 70];
    let tables: Vec<Vec<u32>> = (0..lengths.len() as u32)
        .map(|index| (0..8).map(|page| page * 7 + index).collect())
        .collect();
    let prompts: Vec<Vec<u32>> = lengths
        .iter()
        .map(|length| random.tokens(*length, vocabulary))
        .collect();
    let mut starts = vec![0; lengths.len()];
    let mut parts: Vec<Vec<u32>> = prompts;
    for pass in 0..6 {
        let chunks: Vec<Chunk<'_>> = parts
            .iter()
            .zip(&tables)
            .zip(&starts)
            .enumerate()
            .filter(|(index, _)| *index < [5, 4, 1, 3, 2, 5][pass])
            .map(|(index, ((tokens, pages), start))| Chunk {
                slot: Slot(index),
                pages,
                tokens,
                start: *start,
                logits: pass > 0 || index != 2,
            })
            .collect();
        let expected = theirs.forward(&chunks).unwrap();
        let logits = ours.forward(&chunks).unwrap();
        assert!(expected.iter().flatten().all(|x| x.is_finite()), "{what}");
        assert_eq!(bits(&logits), bits(&expected), "{what}, pass {pass}");
        let done: Vec<usize> = chunks.iter().map(|chunk| chunk.slot.0).collect();
        for index in done {
            starts[index] += parts[index].len();
            parts[index] = random.tokens(1, vocabulary);
        }
    }
    assert!(starts.iter().all(|start| *start < 8 * PAGE));
}

/// A pass reads hardly more bytes of weights than the file has. The embedding of `path` is also its head.
fn few_bytes(path: &Path, what: &str) {
    let Some(gpu) = gpu() else { return };
    let file = GgufFile::open(path).unwrap();
    let matrices = file.tensor_names().filter_map(|name| file.stored(name));
    let matrices = matrices.filter(|(_, shape, _)| shape.len() == 2);
    let stored: usize = matrices.map(|(_, _, bytes)| bytes.len()).sum();
    let read = cuda(gpu, path, 1).weight_bytes().unwrap();
    let ratio = (read.layers + read.head) as f64 / stored as f64;
    assert!((0.99..=1.05).contains(&ratio), "{what}: {ratio}");
}

mod on_a_gpu {
    use super::*;

    mod bytes;
    mod counts;
    mod sweep;

    #[test]
    fn every_weight_type_gives_the_cpus_bits() {
        let folder = tempfile::tempdir().unwrap();
        for dtype in QUANTISED.into_iter().chain(DENSE) {
            let tiny = Tiny::new("llama", true);
            let path = tiny.write_gguf(folder.path(), dtype);
            same_bits(&path, &format!("{dtype:?}"));
            few_bytes(&path, &format!("{dtype:?}"));
        }
    }

    /// Dense rows that are not whole vectors of the kernels, and products of one launch of other types.
    #[test]
    fn odd_sizes_and_mixed_types_give_the_cpus_bits() {
        let folder = tempfile::tempdir().unwrap();
        let odd = Tiny {
            hidden: 42,
            heads: 6,
            kv_heads: 2,
            head_size: 12,
            rope_dimensions: 12,
            intermediate: 307,
            vocabulary: 77,
            ..Tiny::new("qwen3", false)
        };
        let odd = odd.filled(false);
        for dtype in DENSE {
            let path = odd.write_gguf(folder.path(), dtype);
            same_bits(&path, &format!("odd {dtype:?}"));
        }
        let tiny = Tiny::new("llama", true);
        let path = folder.path().join("mixed.gguf");
        let types = |name: &str| match name {
            name if name.contains("attn_q") => GgmlDType::Q5_1,
            name if name.contains("attn_k") => GgmlDType::BF16,
            name if name.contains("attn_v") || name.contains("ffn_gate") => GgmlDType::Q6K,
            name if name.contains("ffn_up") => GgmlDType::F16,
            _ => GgmlDType::Q4K,
        };
        write_gguf(&path, &tiny.metadata(), &tiny.stored(types));
        same_bits(&path, "mixed");
    }

    #[test]
    fn every_family_gives_the_cpus_bits() {
        let folder = tempfile::tempdir().unwrap();
        for family in ["llama", "qwen2", "qwen3"] {
            let tiny = Tiny::new(family, false);
            let path = tiny.write_gguf(folder.path(), GgmlDType::Q8_0);
            same_bits(&path, family);
        }
    }

    /// Sampled tokens are the CPU's, in passes that are graphs and in passes that are not, and so are further
    /// samples of the same rows.
    #[test]
    fn sampled_tokens_are_the_cpus() {
        let folder = tempfile::tempdir().unwrap();
        let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::Q4_1);
        for graphs in [true, false] {
            let Some(gpu) = gpu() else { return };
            let mut ours = cuda(gpu, &path, 60);
            ours.graphs = graphs;
            let mut theirs = native(&path, 1, 60);
            let vocabulary = ours.decoder.spec.vocabulary;
            let mut random = Random(3);
            let tables: Vec<Vec<u32>> = (0..5).map(|index| vec![index, index + 5]).collect();
            let mut samplers: Vec<Sampler> = (0..5)
                .map(|index| {
                    Sampler::new(Sampling {
                        temperature: [0.0, 0.7, 1.0, 5.0, 1.0][index],
                        top_p: [1.0, 1.0, 0.9, 0.3, 1.0][index],
                        top_k: [0, 0, 0, 40, 7][index],
                        seed: index as u64,
                    })
                })
                .collect();
            let mut tokens: Vec<Vec<u32>> =
                (0..5).map(|at| random.tokens(at + 1, vocabulary)).collect();
            let mut starts = [0; 5];
            for pass in 0..8 {
                let rows = 5 - pass % 4;
                let chunks: Vec<Chunk<'_>> = (0..rows)
                    .map(|index| Chunk {
                        slot: Slot(index),
                        pages: &tables[index],
                        tokens: &tokens[index],
                        start: starts[index],
                        logits: true,
                    })
                    .collect();
                let logits = theirs.forward(&chunks).unwrap();
                let mut ahead = samplers.clone();
                let sampling: Vec<_> = ahead[..rows].iter_mut().map(Sampler::parameters).collect();
                let sampled = ours.forward_sampled(&chunks, &sampling).unwrap();
                let expected: Vec<Option<u32>> = samplers
                    .iter_mut()
                    .zip(&logits)
                    .map(|(sampler, logits)| sampler.next(logits))
                    .collect();
                assert_eq!(sampled, expected, "pass {pass}, graphs {graphs}");
                for (row, logits) in logits.iter().enumerate() {
                    let parameters = samplers[row].clone().parameters();
                    assert_eq!(
                        ours.sample_row(row, parameters).unwrap(),
                        samplers[row].clone().next(logits)
                    );
                }
                for row in 0..rows {
                    starts[row] += tokens[row].len();
                    tokens[row] = vec![expected[row].unwrap()];
                }
            }
            assert_eq!(ours.scratch.as_ref().unwrap().graphs.is_empty(), !graphs);
        }
    }

    /// A row without a usable logit has no token; the highest ones may be infinite or equal.
    #[test]
    fn odd_logits_are_sampled_as_on_the_cpu() {
        let folder = tempfile::tempdir().unwrap();
        let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::Q4_1);
        let Some(gpu) = gpu() else { return };
        let mut ours = cuda(gpu, &path, 1);
        let vocabulary = ours.decoder.spec.vocabulary;
        let mut random = Random(5);
        for case in 0..60u32 {
            let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 0.0, -0.0, 1.0];
            let logits: Vec<f32> = (0..vocabulary)
                .map(|_| match (case % 4, random.below(3)) {
                    (0, _) => f32::NEG_INFINITY,
                    (1, 0) => odd[random.below(6) as usize],
                    (2, _) => odd[[0, 2, 3, 4, 5][random.below(5) as usize]],
                    _ => random.next() * 9.0,
                })
                .collect();
            let scratch = ours.scratch.as_mut().unwrap();
            ours.gpu.upload(&mut scratch.logits, 0, &logits).unwrap();
            let mut sampler = Sampler::new(Sampling {
                temperature: [0.0, 1.0, 1e-30, 1e30, 0.5][case as usize % 5],
                top_p: [1.0, 0.5, 0.0][case as usize % 3],
                top_k: [0, 1, 5, 10_000][case as usize / 15],
                seed: u64::from(case),
            });
            let parameters = sampler.clone().parameters();
            let sampled = ours.sample_row(0, parameters).unwrap();
            assert_eq!(sampled, sampler.next(&logits), "case {case}");
        }
    }

    /// A long context alone, and beside a short one: the attention is split over spans of positions.
    #[test]
    fn a_split_attention_gives_the_cpus_bits() {
        let folder = tempfile::tempdir().unwrap();
        for family in ["llama", "qwen3"] {
            let path = Tiny::new(family, true).write_gguf(folder.path(), GgmlDType::Q8_0);
            let Some(gpu) = gpu() else { return };
            let mut ours = cuda(gpu, &path, 40);
            ours.fewest_spans = 3;
            let mut theirs = native(&path, 1, 40);
            let vocabulary = ours.decoder.spec.vocabulary;
            let mut random = Random(2);
            let tables: [Vec<u32>; 2] = [(0..30).rev().collect(), (30..34).collect()];
            let mut tokens = [random.tokens(317, vocabulary), random.tokens(5, vocabulary)];
            let mut starts = [0; 2];
            for pass in 0..7 {
                let rows = if pass % 3 == 1 { 1 } else { 2 };
                let chunks: Vec<Chunk<'_>> = (0..rows)
                    .map(|index| Chunk {
                        slot: Slot(index),
                        pages: &tables[index],
                        tokens: &tokens[index],
                        start: starts[index],
                        logits: true,
                    })
                    .collect();
                let expected = theirs.forward(&chunks).unwrap();
                let logits = ours.forward(&chunks).unwrap();
                assert_eq!(bits(&logits), bits(&expected), "{family}, pass {pass}");
                let sampled = ours.forward_sampled(&chunks, &vec![None; rows]).unwrap();
                let mut greedy = Sampler::new(Sampling::default());
                for row in 0..rows {
                    assert_eq!(sampled[row], greedy.next(&expected[row]), "pass {pass}");
                    starts[row] += tokens[row].len();
                    tokens[row] = random.tokens(1, vocabulary);
                }
            }
            let scratch = ours.scratch.as_ref().unwrap();
            assert!(scratch.graphs.keys().any(|(_, split)| split.is_some()));
        }
    }

    /// Sequences whose tables begin with the same pages, of different lengths and with forks: prompts of several
    /// chunks, then decode passes, in tiles of several sequences or not, and split or not.
    #[test]
    fn shared_prefixes_give_the_cpus_bits() {
        let folder = tempfile::tempdir().unwrap();
        // Heads, KV heads, columns: one fragment of queries or two, whole ones or not.
        for (heads, kv_heads, head_size) in [(6, 2, 64), (8, 1, 80), (5, 5, 128), (4, 2, 256)] {
            let tiny = Tiny {
                heads,
                kv_heads,
                head_size,
                rope_dimensions: head_size,
                ..Tiny::new("qwen3", true)
            };
            let path = tiny.filled(true).write_gguf(folder.path(), GgmlDType::Q8_0);
            let Some(gpu) = gpu() else { return };
            let what = format!("{heads} heads of {head_size}");
            shared_prefixes(cuda(gpu, &path, 64), native(&path, 1, 64), &what);
        }
    }

    fn shared_prefixes(mut ours: CudaModel, mut theirs: impl Model, what: &str) {
        let vocabulary = ours.decoder.spec.vocabulary;
        let mut random = Random(4);
        let table = |shared: &[u32], own: u32| -> Vec<u32> {
            shared.iter().copied().chain(own..own + 6).collect()
        };
        let trunk = table(&[0, 1, 2, 3, 4, 5, 6, 7], 8);
        let branch = table(&trunk[..8], 20);
        let fork = table(&branch[..9], 26);
        let tables = [
            trunk.clone(),
            branch,
            table(&trunk[..5], 32),
            vec![40, 41],
            fork,
        ];
        // What each pass computes: sequence, its first position, its tokens, whether with logits.
        let mut passes = vec![
            vec![(0, 0, 130, false)],
            vec![(1, 128, 33, true), (2, 80, 9, false), (3, 0, 1, true)],
            vec![(4, 144, 5, false), (0, 130, 1, true), (2, 89, 70, true)],
        ];
        let prompts = passes.len();
        let ends = [131, 161, 159, 1, 149];
        passes.extend((0..6).map(|step| {
            let rows = [2, 4, 0, 3, 1].into_iter().skip(step / 2);
            rows.map(|index| (index, ends[index] + step, 1, true))
                .collect()
        }));
        // Multiprocessors, and the fewest spans that are split: tiles where they are quick, as many as there can be,
        // and split.
        let modes = [(1000, 100), (1, 100), (1000, 1)];
        for (pass, rows) in passes.into_iter().enumerate() {
            let tokens: Vec<Vec<u32>> = rows
                .iter()
                .map(|row| random.tokens(row.2, vocabulary))
                .collect();
            let chunks: Vec<Chunk<'_>> = rows
                .iter()
                .zip(&tokens)
                .map(|(&(index, start, _, logits), tokens)| Chunk {
                    slot: Slot(index),
                    pages: &tables[index],
                    tokens,
                    start,
                    logits,
                })
                .collect();
            (ours.multiprocessors, ours.fewest_spans) = modes[pass % 3];
            let expected = theirs.forward(&chunks).unwrap();
            let what = format!("{what}, pass {pass}");
            let logits = ours.forward(&chunks).unwrap();
            assert_eq!(bits(&logits), bits(&expected), "{what}");
            if pass < prompts {
                continue;
            }
            let sampled = ours
                .forward_sampled(&chunks, &vec![None; rows.len()])
                .unwrap();
            let mut greedy = Sampler::new(Sampling::default());
            let expected = expected.iter().map(|logits| greedy.next(logits));
            assert_eq!(sampled, expected.collect::<Vec<_>>(), "{what}");
            let tiles = ours.scratch.as_ref().unwrap().staged[upload::TILES_AT];
            assert!((tiles as usize) < rows.len(), "{what}");
        }
    }
}

mod with_a_profile {
    use super::*;
    use crate::profile::{self, PassTokens, Span};

    /// Prompts are timed by kernel, and so is one of 16 decode passes; the others stay graphs. The tokens are those
    /// of a model without a profile.
    #[test]
    fn passes_have_device_times() {
        let Some(gpu) = gpu() else { return };
        let folder = tempfile::tempdir().unwrap();
        let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::Q4_1);
        let mut model = cuda(gpu, &path, 4);
        let layers = model.decoder.spec.layers as u64;
        let tokens = |model: &mut CudaModel| {
            let mut sampled = Vec::new();
            let mut next = vec![5, 6, 7];
            let mut start = 0;
            for pass in 0..20 {
                let prompt = usize::from(pass == 0) * next.len();
                let _pass = profile::pass(Span::Forward, || PassTokens {
                    sequences: 1,
                    prefill_tokens: prompt,
                    decode_tokens: next.len() - prompt,
                });
                let chunk = Chunk {
                    slot: Slot(0),
                    pages: &[0, 1],
                    tokens: &next,
                    start,
                    logits: true,
                };
                let token = model.forward_sampled(&[chunk], &[None]).unwrap()[0].unwrap();
                start += next.len();
                next = vec![token];
                sampled.push(token);
            }
            sampled
        };
        let expected = tokens(&mut model);
        profile::enable();
        assert_eq!(tokens(&mut model), expected);
        let times = profile::snapshot().unwrap().device.unwrap();
        assert_eq!(times.name, model.gpu.info().name);
        let [prefill, decode] = &times.phases[..] else {
            panic!("{times:?}");
        };
        assert_eq!((prefill.passes, prefill.timed_passes), (1, 1));
        assert_eq!((decode.passes, decode.timed_passes), (19, 2));
        for phase in [prefill, decode] {
            let calls = |name: &str| {
                let mut rows = phase.kernels.iter();
                rows.find(|row| row.name == name).map_or(0, |row| row.ncall)
            };
            let passes = phase.timed_passes;
            assert_eq!(calls("embedding"), passes);
            assert_eq!(calls("linear"), 3 * layers * passes);
            assert_eq!(calls("gate"), layers * passes);
            assert_eq!(calls("attention"), layers * passes);
            assert_eq!(calls("head") + calls("sample"), 2 * passes);
            let shares: f64 = phase.kernels.iter().map(|row| row.share).sum();
            assert!((shares - 1.0).abs() < 1e-9, "{phase:?}");
            let kernels: f64 = phase.kernels.iter().map(|row| row.ttot_s).sum();
            assert!(
                kernels > 0.0 && kernels <= phase.timed_s * 1.001,
                "{phase:?}"
            );
        }
        let trace = profile::trace().unwrap();
        assert!(
            trace.contains(&format!("\"name\":\"{}\"", times.name)),
            "a lane"
        );
        assert!(trace.contains("device_ms"));
    }
}
