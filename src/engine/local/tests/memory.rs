//! A device whose memory runs out in a pass.

use super::*;
use crate::engine::cuda::driver::GpuError;
use crate::engine::model::{ModelSpec, WeightBytes};

/// A model whose passes take at most so many sequences, as if the device's memory were short.
struct Short {
    inner: Box<dyn Model>,
    most: usize,
    /// Whether [`Model::save_memory`] finds something, once.
    has_spare: bool,
}

impl Model for Short {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }

    fn backend(&self) -> &'static str {
        self.inner.backend()
    }

    fn weights(&self) -> String {
        self.inner.weights()
    }

    fn weight_bytes(&self) -> Option<WeightBytes> {
        self.inner.weight_bytes()
    }

    fn checks_guesses(&self) -> bool {
        self.inner.checks_guesses()
    }

    fn max_sequences(&self) -> usize {
        self.inner.max_sequences()
    }

    fn page_bytes(&self) -> Option<usize> {
        self.inner.page_bytes()
    }

    fn set_pages(&mut self, pages: usize) -> Result<()> {
        self.inner.set_pages(pages)
    }

    fn provide_pages(&mut self, pages: usize) -> usize {
        self.inner.provide_pages(pages)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.inner.copy_page(from, to)
    }

    fn open(&mut self) -> Result<Slot> {
        self.inner.open()
    }

    fn close(&mut self, slot: Slot) {
        self.inner.close(slot);
    }

    fn save_memory(&mut self) -> bool {
        if self.has_spare {
            self.most += 1;
        }
        std::mem::replace(&mut self.has_spare, false)
    }

    fn forward(&mut self, chunks: &[Chunk<'_>]) -> Result<Vec<Vec<f32>>> {
        if chunks.len() > self.most {
            return Err(GpuError::too_large("cuMemAlloc_v2").in_pass("compute on the GPU"));
        }
        self.inner.forward(chunks)
    }

    fn synchronize(&self) -> Result<()> {
        self.inner.synchronize()
    }
}

fn short(most: usize, has_spare: bool) -> Option<LocalEngine> {
    let mut engine = load()?;
    engine.model = Box::new(Short {
        inner: engine.model,
        most,
        has_spare,
    });
    Some(engine)
}

/// The texts of the requests' answers, submitted at once.
fn texts(engine: &mut LocalEngine) -> Result<Vec<String>> {
    let ids: Vec<RequestId> = requests()
        .into_iter()
        .map(|request| engine.submit(request))
        .collect::<Result<_>>()?;
    let mut texts = BTreeMap::new();
    while texts.len() < ids.len() {
        for event in engine.poll()? {
            if let EventKind::Finished(completion) = event.kind {
                texts.insert(event.id.0, completion.text);
            }
        }
    }
    Ok(texts.into_values().collect())
}

#[test]
fn fewer_sequences_are_computed_and_the_answers_stay() {
    let (Some(mut roomy), Some(mut engine)) = (load(), short(4, false)) else {
        return;
    };
    let expected = texts(&mut roomy).unwrap();
    assert_eq!(texts(&mut engine).unwrap(), expected);
    let shortages = engine.take_shortages();
    let [shortage] = &shortages[..] else {
        panic!("{shortages:?}");
    };
    assert!(shortage.sequences > 4 && shortage.admitted == shortage.sequences / 2);
    assert!(
        shortage
            .error
            .contains("cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY"),
        "{}",
        shortage.error
    );
    assert!(engine.take_shortages().is_empty(), "reported once");
    assert!(roomy.take_shortages().is_empty());
}

#[test]
fn a_pass_is_tried_only_once_more() {
    // Half of eight is still too many.
    let Some(mut engine) = short(1, false) else {
        return;
    };
    let error = texts(&mut engine).unwrap_err();
    assert_eq!(error.exit(), crate::error::Exit::FlowFailed);
    assert!(error.report().contains("CUDA_ERROR_OUT_OF_MEMORY"));
    assert_eq!(engine.take_shortages().len(), 1, "still recorded");
}

#[test]
fn a_single_sequence_needs_something_to_give_up() {
    for has_spare in [false, true] {
        let Some(mut engine) = short(0, has_spare) else {
            return;
        };
        engine.submit(ask("What is a ticket?", 3)).unwrap();
        let mut failed = false;
        while !failed && !engine.sequences.is_empty() {
            failed = engine.poll().is_err();
        }
        assert_eq!(failed, !has_spare);
        assert_eq!(engine.take_shortages().len(), usize::from(has_spare));
    }
}
