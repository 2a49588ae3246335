//! The forward pass computes what the description says, and a file that lacks what it says is refused.

use super::*;
use crate::engine::decoder::{Divisors, Norm, Rope};

/// The logits after 20 tokens, with a changed description.
fn described(path: &Path, change: impl FnOnce(&mut Decoder)) -> Vec<f32> {
    let file = GgufFile::open(path).unwrap();
    let mut decoder = described_gguf(&file).unwrap();
    change(&mut decoder);
    let mut model = NativeModel::load(&file, decoder, String::new(), 1).unwrap();
    model.set_pages(2).unwrap();
    let tokens = Random(3).tokens(20, model.decoder.spec.vocabulary);
    let slot = model.open().unwrap();
    step(&mut model, slot, &[0, 1], &tokens, 0)
}

#[test]
fn each_layer_has_its_own_rotation() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::F32);
    let other = Rope {
        dimensions: 64,
        base: 100.0,
        divisors: Divisors::None,
    };
    let with = |layers: [usize; 2]| {
        let other = other.clone();
        described(&path, |decoder| {
            decoder.ropes.push(other);
            decoder.layer_ropes = layers.to_vec();
        })
    };
    let plain = described(&path, |_| ());
    assert_eq!(with([0, 0]), plain);
    let everywhere = described(&path, |decoder| decoder.ropes[0] = other.clone());
    assert_eq!(with([1, 1]), everywhere);
    let variants = [plain, everywhere, with([0, 1]), with([1, 0])];
    for (index, variant) in variants.iter().enumerate() {
        assert!(!variants[..index].contains(variant), "{index}");
    }
}

#[test]
fn epsilon_and_scale_are_the_descriptions() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("qwen3", true).write_gguf(folder.path(), GgmlDType::F32);
    let plain = described(&path, |_| ());
    let large = described(&path, |decoder| decoder.norm = Norm::Rms { epsilon: 0.5 });
    let flat = described(&path, |decoder| decoder.attention.scale = 0.0);
    assert_ne!(plain, large);
    assert_ne!(plain, flat);
}

#[test]
fn a_file_without_a_tensor_of_its_family_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("incomplete.gguf");
    let cases = [
        (
            "qwen2",
            &["blk.1.attn_v.bias"][..],
            "only some of attn_q, attn_k, attn_v in block 1 have a bias",
        ),
        (
            "qwen2",
            &[
                "blk.1.attn_q.bias",
                "blk.1.attn_k.bias",
                "blk.1.attn_v.bias",
            ],
            "tensor `blk.1.attn_q.bias` is missing",
        ),
        (
            "qwen3",
            &["blk.0.attn_k_norm.weight"],
            "tensor `blk.0.attn_q_norm.weight` or `attn_k_norm.weight` is missing",
        ),
    ];
    for (architecture, without, expected) in cases {
        let tiny = Tiny::new(architecture, true);
        let mut tensors = tiny.stored(|_| GgmlDType::F32);
        tensors.retain(|(name, _)| !without.contains(&name.as_str()));
        write_gguf(&path, &tiny.metadata(), &tensors);
        let file = GgufFile::open(&path).unwrap();
        let error = NativeModel::from_gguf(&file).map(|_| ()).unwrap_err();
        assert_eq!(error.chain(), expected);
        assert_eq!(error.exit(), Exit::Preflight);
    }
}
