//! A scratch buffer for each thread, so that a part of the work allocates nothing.
//!
//! A thread in the middle of a part cannot report that memory is short. A pass that needs much checks
//! it beforehand (`AttentionPlan::scratch_bytes`).

use std::cell::RefCell;

use super::aligned::Aligned;

struct Scratch {
    numbers: Aligned<f32>,
    len: usize,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const {
        RefCell::new(Scratch {
            numbers: Aligned::empty(),
            len: 0,
        })
    };
}

/// Calls `work` with the thread's scratch, 64-byte aligned: at least `len` numbers of any content. Must
/// not be called inside `work`.
pub(super) fn with<R>(len: usize, work: impl FnOnce(*mut f32) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| work(scratch.get(len)))
}

/// The same without a closure, which would not be compiled for the caller's target features. Valid
/// until this thread next asks for scratch.
pub(super) fn get(len: usize) -> *mut f32 {
    SCRATCH.with_borrow_mut(|scratch| scratch.get(len))
}

impl Scratch {
    fn get(&mut self, len: usize) -> *mut f32 {
        if self.len < len {
            self.numbers = Aligned::zeroed(len).unwrap_or_else(|refused| refused.abort());
            self.len = len;
        }
        self.numbers.as_mut_ptr()
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn scratch_grows_and_is_kept() {
        let first = super::with(16, |scratch| scratch.addr());
        assert!(first.is_multiple_of(64));
        assert_eq!(super::with(8, |scratch| scratch.addr()), first);
        super::with(1 << 16, |scratch| {
            // SAFETY: the scratch holds that many numbers.
            unsafe { scratch.add((1 << 16) - 1).write(1.0) }
        });
    }
}
