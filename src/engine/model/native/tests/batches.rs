//! Bit-stability: a sequence's logits have the same bits alone or in a batch, in one chunk or many, in
//! its own or in shared pages, on any number of threads.

use super::*;

/// Pages of each model: enough for all sequences of a mix.
const PAGES: usize = 160;

/// Mixes per model.
const MIXES: u64 = 12;

/// A sequence of a mix.
struct Member {
    tokens: Vec<u32>,
    /// Another member, and how many of its first tokens this one starts with once they are computed.
    from: Option<(usize, usize)>,
    pages: Vec<u32>,
    computed: usize,
}

/// Sequences of 1 to about 250 tokens, some with a common prefix.
fn members(random: &mut Random, vocabulary: usize) -> Vec<Member> {
    let base = random.tokens(200, vocabulary);
    let mut prefixes: Vec<usize> = Vec::new();
    let mut members = Vec::new();
    for index in 0..2 + random.below(6) as usize {
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

/// Runs a mix; calls `check` with the tokens and the logits of each requested row.
fn run_mix(model: &mut NativeModel, seed: u64, check: &mut dyn FnMut(&[u32], &[f32])) {
    let mut random = Random(seed);
    let mut members = members(&mut random, model.decoder.spec.vocabulary);
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
            // Full pages are shared, the partial one is copied.
            let mut pages = members[from].pages[..common / PAGE].to_vec();
            if !common.is_multiple_of(PAGE) {
                let copy = page(&mut random);
                model
                    .copy_page(members[from].pages[common / PAGE], copy)
                    .unwrap();
                pages.push(copy);
            }
            members[index].pages = pages;
            members[index].computed = common;
        }
        let mut batch: Vec<(usize, usize, bool)> = Vec::new();
        for (index, member) in members.iter_mut().enumerate() {
            let left = member.tokens.len() - member.computed;
            let waits = member.from.is_some() && member.computed == 0;
            if left == 0 || waits || random.below(4) == 0 {
                continue;
            }
            let count = match random.below(3) {
                0 => 1,
                1 => 1 + random.below(left as u32) as usize,
                _ => left,
            };
            let end = member.computed + count;
            while member.pages.len() < end.div_ceil(PAGE) {
                member.pages.push(page(&mut random));
            }
            // The end of each sequence, and every other chunk.
            let logits = count == left || random.below(2) == 0;
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
        let rows = model.forward(&chunks).unwrap();
        for &(index, count, _) in &batch {
            members[index].computed += count;
        }
        let wanted: Vec<usize> = batch
            .iter()
            .filter(|(_, _, logits)| *logits)
            .map(|(index, _, _)| *index)
            .collect();
        assert_eq!(rows.len(), wanted.len());
        for (index, row) in wanted.into_iter().zip(&rows) {
            let member = &members[index];
            check(&member.tokens[..member.computed], row);
        }
    }
}

#[test]
fn logits_are_bit_stable_in_any_batch_chunking_pages_and_threads() {
    let folder = tempfile::tempdir().unwrap();
    let cases = [
        ("llama", GgmlDType::Q4_1),
        ("qwen2", GgmlDType::Q8_0),
        ("qwen3", GgmlDType::Q6K),
        ("llama", GgmlDType::Q5K),
        ("qwen2", GgmlDType::F16),
    ];
    for (architecture, dtype) in cases {
        let path = Tiny::new(architecture, true).write_gguf(folder.path(), dtype);
        let mut alone = native(&path, 1, PAGES);
        let own: Vec<u32> = (0..PAGES as u32).collect();
        let mut models = [1, 2, 3].map(|threads| native(&path, threads, PAGES));
        for mix in 0..MIXES {
            // The same mix on one thread and on several; the single-sequence rows are computed once.
            let mut expected = Vec::new();
            for model in &mut models {
                let threads = model.pool.threads();
                let mut rows = 0;
                run_mix(model, 1000 + mix, &mut |tokens, row| {
                    if expected.len() == rows {
                        expected.push(step(&mut alone, Slot(0), &own, tokens, 0));
                    }
                    let same = expected[rows]
                        .iter()
                        .zip(row)
                        .all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(
                        same,
                        "{architecture} {dtype:?}, mix {mix}, {threads} threads, {} tokens: {}",
                        tokens.len(),
                        difference(row, &expected[rows])
                    );
                    rows += 1;
                });
            }
        }
    }
}
