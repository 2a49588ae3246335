//! Memory that each thread keeps for what it computes on the way, so that a part allocates nothing.
//!
//! A thread in the middle of a part has no way to say that there is no memory: whoever starts a pass
//! that takes much sees to it before (`AttentionPlan::scratch_bytes`).

use std::cell::RefCell;

use super::aligned::Aligned;

/// A buffer and how many numbers it holds.
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

/// Calls `work` with the thread's scratch, from a 64-byte boundary on: at least `len` numbers, which hold
/// anything. Not to be called inside `work`.
pub(super) fn with<R>(len: usize, work: impl FnOnce(*mut f32) -> R) -> R {
    SCRATCH.with_borrow_mut(|scratch| work(scratch.get(len)))
}

/// The same for a caller whose work a closure would keep from being compiled for its processor: good
/// until this thread asks for scratch again.
#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    allow(dead_code, reason = "no family of this architecture pairs")
)]
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
    fn the_room_grows_and_stays() {
        let first = super::with(16, |scratch| scratch.addr());
        assert!(first.is_multiple_of(64));
        assert_eq!(super::with(8, |scratch| scratch.addr()), first);
        super::with(1 << 16, |scratch| {
            // SAFETY: the scratch holds that many numbers.
            unsafe { scratch.add((1 << 16) - 1).write(1.0) }
        });
    }
}
