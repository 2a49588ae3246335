//! Memory that each thread keeps for what it computes on the way, so that a part allocates nothing.
//!
//! A thread in the middle of a part has no way to say that there is no memory: whoever starts a pass
//! that takes much sees to it before (`AttentionPlan::room_bytes`).

use std::cell::RefCell;

use super::aligned::Aligned;

/// A buffer and how many numbers it holds.
struct Room {
    numbers: Aligned<f32>,
    len: usize,
}

thread_local! {
    static ROOM: RefCell<Room> = const {
        RefCell::new(Room {
            numbers: Aligned::empty(),
            len: 0,
        })
    };
}

/// Calls `work` with the thread's room, from a 64-byte boundary on: at least `len` numbers, which hold
/// anything. Not to be called inside `work`.
pub(super) fn with<R>(len: usize, work: impl FnOnce(*mut f32) -> R) -> R {
    ROOM.with_borrow_mut(|room| work(room.of(len)))
}

/// The same for a caller whose work a closure would keep from being compiled for its processor: good
/// until this thread asks for room again.
#[cfg_attr(
    not(any(test, target_arch = "x86_64")),
    allow(dead_code, reason = "no family of this architecture pairs")
)]
pub(super) fn of(len: usize) -> *mut f32 {
    ROOM.with_borrow_mut(|room| room.of(len))
}

impl Room {
    fn of(&mut self, len: usize) -> *mut f32 {
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
        let first = super::with(16, |room| room.addr());
        assert!(first.is_multiple_of(64));
        assert_eq!(super::with(8, |room| room.addr()), first);
        super::with(1 << 16, |room| {
            // SAFETY: the room holds that many numbers.
            unsafe { room.add((1 << 16) - 1).write(1.0) }
        });
    }
}
