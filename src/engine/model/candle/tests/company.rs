//! Sequences in batches of any composition, with shared, copied and reused pages.

use super::*;
use crate::engine::decoder::FAMILIES;

/// Pages of each model; enough for all sequences of a mix.
const PAGES: usize = 160;

/// Upper bound on the difference from the logits of a sequence computed alone, relative to the
/// largest logit. Measured: 2.1e-6.
const COMPANY_BOUND: f32 = 1e-5;

/// A sequence of a mix.
struct Member {
    tokens: Vec<u32>,
    /// Another member, and the number of leading tokens taken from it once it has computed them.
    from: Option<(usize, usize)>,
    pages: Vec<u32>,
    computed: usize,
}

/// Sequences of 1 to about 250 tokens, some with a common prefix.
fn members(random: &mut Random, vocabulary: usize) -> Vec<Member> {
    let base = random.tokens(200, vocabulary);
    let mut prefixes: Vec<usize> = Vec::new();
    let mut members = Vec::new();
    for index in 0..3 + random.below(6) as usize {
        let prefix = match random.below(3) {
            0 => 0,
            1 => random.below(200) as usize,
            _ => 150,
        };
        let mut tokens = base[..prefix].to_vec();
        let own = 1 + random.below(50) as usize;
        tokens.extend(random.tokens(own, vocabulary));
        let from = (index > 0 && random.below(4) > 0).then(|| {
            let from = random.below(index as u32) as usize;
            (from, prefix.min(prefixes[from]).min(tokens.len() - 1))
        });
        prefixes.push(prefix);
        members.push(Member {
            tokens,
            from: from.filter(|(_, common)| *common > 0),
            pages: Vec::new(),
            computed: 0,
        });
    }
    members
}

/// A computed chunk: its start and its tokens.
type Computed = (usize, Vec<u32>);

/// Receives, for a row of logits: its sequence's tokens, the chunks that computed the keys and
/// values, and the logits.
type Check<'a> = dyn FnMut(&[u32], &[Computed], &[f32]) + 'a;

/// Runs a mix in passes of up to `most` tokens, with pages in random order. Calls `check` for each
/// wanted row of logits.
fn run_mix(model: &mut CandleModel, seed: u64, most: usize, check: &mut Check<'_>) {
    let mut random = Random(seed);
    let mut members = members(&mut random, model.spec.vocabulary);
    let mut histories: Vec<Vec<Computed>> = members.iter().map(|_| Vec::new()).collect();
    let mut free: Vec<u32> = (0..PAGES as u32).collect();
    let mut page = |random: &mut Random| {
        let at = random.below(free.len() as u32) as usize;
        free.swap_remove(at)
    };
    while members
        .iter()
        .any(|member| member.computed < member.tokens.len())
    {
        for index in 0..members.len() {
            let Some((from, common)) = members[index].from else {
                continue;
            };
            if members[index].computed > 0 || members[from].computed < common {
                continue;
            }
            // Whole pages are shared; a partial page is copied.
            let mut pages = members[from].pages[..common / PAGE_TOKENS].to_vec();
            if !common.is_multiple_of(PAGE_TOKENS) {
                let copy = page(&mut random);
                let original = members[from].pages[common / PAGE_TOKENS];
                model.copy_page(original, copy).unwrap();
                pages.push(copy);
            }
            members[index].pages = pages;
            members[index].computed = common;
            // A chunk may extend beyond the shared prefix; the rest of it is overwritten later.
            histories[index] = histories[from].clone();
            histories[index].retain(|(start, _)| *start < common);
        }
        let mut room = most;
        let mut batch: Vec<(usize, usize, bool)> = Vec::new();
        for (index, member) in members.iter_mut().enumerate() {
            let left = (member.tokens.len() - member.computed).min(room);
            let waits = member.from.is_some() && member.computed == 0;
            if left == 0 || waits || random.below(4) == 0 {
                continue;
            }
            let count = match random.below(3) {
                0 => 1,
                1 => 1 + random.below(left as u32) as usize,
                _ => left,
            };
            room -= count;
            let end = member.computed + count;
            while member.pages.len() < end.div_ceil(PAGE_TOKENS) {
                member.pages.push(page(&mut random));
            }
            let logits = end == member.tokens.len() || random.below(2) == 0;
            let at = random.below(batch.len() as u32 + 1) as usize;
            batch.insert(at, (index, count, logits));
        }
        let chunks: Vec<Chunk<'_>> = batch
            .iter()
            .map(|&(index, count, logits)| {
                let member = &members[index];
                Chunk {
                    slot: Slot(index),
                    pages: &member.pages,
                    tokens: &member.tokens[member.computed..member.computed + count],
                    start: member.computed,
                    logits,
                }
            })
            .collect();
        let mut rows = model.forward(&chunks).unwrap().into_iter();
        for &(index, count, logits) in &batch {
            let (start, end) = (members[index].computed, members[index].computed + count);
            members[index].computed = end;
            let tokens = &members[index].tokens;
            histories[index].push((start, tokens[start..end].to_vec()));
            if logits {
                check(&tokens[..end], &histories[index], &rows.next().unwrap());
            }
        }
        assert!(rows.next().is_none());
    }
}

/// `pagewise`: see [`CandleModel::pagewise`].
fn model(path: &Path, pagewise: Option<Kernel>) -> CandleModel {
    let mut model = ours(path);
    model.set_pages(PAGES).unwrap();
    model.pagewise = pagewise;
    model
}

/// The logits after the last of these chunks, computed alone with pages in order.
fn alone(model: &mut CandleModel, chunks: &[Computed]) -> Vec<f32> {
    let pages: Vec<u32> = (0..PAGES as u32).collect();
    let mut last = Vec::new();
    for (start, tokens) in chunks {
        let chunk = Chunk {
            slot: Slot(0),
            pages: &pages,
            tokens,
            start: *start,
            logits: true,
        };
        last = model.forward(&[chunk]).unwrap().remove(0);
    }
    last
}

/// Compares with each whole sequence computed alone, on a CPU with AVX2 and on one without.
#[test]
fn logits_do_not_depend_on_the_mix_of_chunks_pages_and_forks() {
    let folder = tempfile::tempdir().unwrap();
    for architecture in FAMILIES.map(|family| family.name) {
        let path = Tiny::new(architecture, true).write_gguf(folder.path(), GgmlDType::Q8_0);
        let mut reference = model(&path, Kernel::of_this_cpu());
        for pagewise in [Kernel::of_this_cpu(), None] {
            let mut mixed = model(&path, pagewise);
            let (mut most, mut rows) = (0.0f32, 0);
            for mix in 0..6 {
                run_mix(&mut mixed, 1000 + mix, 512, &mut |tokens, _, row| {
                    let expected = alone(&mut reference, &[(0, tokens.to_vec())]);
                    most = most.max(difference(row, &expected));
                    rows += 1;
                });
            }
            eprintln!("{architecture}, {pagewise:?}: {rows} rows, {most:.1e}");
            assert!(most < COMPANY_BOUND, "{architecture}, {pagewise:?}: {most}");
        }
    }
}

/// On a CPU with AVX2, in passes of up to 64 tokens, results do not depend on the other sequences:
/// the same chunks alone have the same bits, whatever their pages.
#[test]
fn in_passes_of_few_tokens_logits_have_the_same_bits_in_any_batch_and_pages() {
    let pagewise = Kernel::of_this_cpu();
    if pagewise.is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    for architecture in FAMILIES.map(|family| family.name) {
        let path = Tiny::new(architecture, true).write_gguf(folder.path(), GgmlDType::Q4_1);
        let mut reference = model(&path, pagewise);
        let mut mixed = model(&path, pagewise);
        for mix in 0..6 {
            run_mix(&mut mixed, 2000 + mix, 64, &mut |_, chunks, row| {
                let expected = alone(&mut reference, chunks);
                let apart = difference(row, &expected);
                let same = row
                    .iter()
                    .zip(&expected)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{architecture}, mix {mix}: {apart}");
            });
        }
    }
}

#[test]
fn a_copied_page_is_independent() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("llama", true).write_gguf(folder.path(), GgmlDType::F32);
    for pagewise in [Kernel::of_this_cpu(), None] {
        let mut model = model(&path, pagewise);
        let tokens = Random(9).tokens(40, model.spec.vocabulary);
        let mut forward = |pages: &[u32], tokens: &[u32], start| {
            let chunk = Chunk {
                slot: Slot(1),
                pages,
                tokens,
                start,
                logits: true,
            };
            model.forward(&[chunk]).unwrap().remove(0)
        };
        forward(&[7, 3], &tokens[..20], 0);
        let expected = forward(&[7, 3], &tokens[20..21], 20);
        // The fork appends different tokens after the same 20, while the original continues.
        model.copy_page(3, 9).unwrap();
        let mut forward = |pages: &[u32], tokens: &[u32], start| {
            let chunk = Chunk {
                slot: Slot(1),
                pages,
                tokens,
                start,
                logits: true,
            };
            model.forward(&[chunk]).unwrap().remove(0)
        };
        assert_eq!(forward(&[7, 9], &tokens[20..21], 20), expected);
        forward(&[7, 9], &tokens[30..40], 20);
        let first = forward(&[7, 3, 1], &tokens[21..40], 21);
        forward(&[0, 2, 4], &tokens[..20], 0);
        forward(&[0, 2, 4], &tokens[20..21], 20);
        let alone = forward(&[0, 2, 4], &tokens[21..40], 21);
        assert!(difference(&first, &alone) < 1e-6);
    }
}

/// Pages keep no trace: a sequence sees nothing of the previous user of its pages.
#[test]
fn reused_pages_behave_like_new_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = Tiny::new("qwen2", true).write_gguf(folder.path(), GgmlDType::F32);
    for pagewise in [Kernel::of_this_cpu(), None] {
        let mut model = model(&path, pagewise);
        let tokens = Random(6).tokens(300, model.spec.vocabulary);
        let short = [(0, tokens[..20].to_vec()), (20, tokens[20..21].to_vec())];
        let fresh = alone(&mut model, &short);
        alone(&mut model, &[(0, tokens)]);
        assert_eq!(alone(&mut model, &short), fresh);
    }
}
