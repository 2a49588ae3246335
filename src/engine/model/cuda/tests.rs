//! The CUDA forward against the native one: the same bits, on the simulated GPU (`tests/simgpu`).
//!
//! `FLOWBENCH_TEST_SIMGPU=1 LD_LIBRARY_PATH=$(bash scripts/simgpu.sh) cargo test --lib model::cuda`

#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::path::Path;

use candle_core::quantized::GgmlDType;

use super::*;
use crate::engine::kernels::PAGE;
use crate::engine::model::native::tests::native;
use crate::engine::model::testing::{Random, Tiny};

/// Set where the driver must be the simulated GPU's.
const REQUIRED: &str = "FLOWBENCH_TEST_SIMGPU";

/// The simulated GPU, unless this process was started without it.
fn simulated() -> Option<Gpu> {
    if std::env::var_os(REQUIRED).is_none() {
        eprintln!("skipped: {REQUIRED} is not set");
        return None;
    }
    let gpu = Gpu::open().unwrap();
    assert_eq!(gpu.info().name, "Simulated GPU");
    Some(gpu)
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
    let Some(gpu) = simulated() else { return };
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
            .filter(|(index, _)| pass == 0 || *index < 5 - pass % 3)
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

#[test]
fn every_weight_type_gives_the_cpus_bits() {
    let folder = tempfile::tempdir().unwrap();
    let types = [
        GgmlDType::Q4_0,
        GgmlDType::Q4_1,
        GgmlDType::Q5_0,
        GgmlDType::Q5_1,
        GgmlDType::Q8_0,
        GgmlDType::Q4K,
        GgmlDType::Q5K,
        GgmlDType::Q6K,
        GgmlDType::F16,
        GgmlDType::BF16,
        GgmlDType::F32,
    ];
    for dtype in types {
        let tiny = Tiny::new("llama", true);
        let path = tiny.write_gguf(folder.path(), dtype);
        same_bits(&path, &format!("{dtype:?}"));
    }
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
