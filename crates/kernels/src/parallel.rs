//! Safe ways to give the parts of a [`Pool`]'s run pieces of slices to write: rows, or stretches.

use super::pool::Pool;

/// A pointer that threads may write through, each to places of its own.
struct Shared<T>(*mut T);
// SAFETY: the functions below give each part elements that no other part has.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// In bounds of the slice, which lives, and nobody else has these elements.
    unsafe fn part<'a>(&self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: as this function's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// No matrix, for [`Pool::rows`].
pub fn none() -> (&'static mut [f32], usize) {
    (&mut [], 0)
}

impl Pool {
    /// Calls `part(first row, rows of a, rows of b, rows of c)` for every `step` of `rows` rows. Each
    /// matrix is given with the width of its rows; a width of 0 stands for no matrix.
    ///
    /// # Panics
    /// Where a matrix has fewer rows.
    pub fn rows<A: Send, B: Send, C: Send>(
        &self,
        rows: usize,
        step: usize,
        (a, a_width): (&mut [A], usize),
        (b, b_width): (&mut [B], usize),
        (c, c_width): (&mut [C], usize),
        part: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
    ) {
        assert!(a.len() >= rows * a_width && b.len() >= rows * b_width);
        assert!(c.len() >= rows * c_width);
        let step = step.max(1);
        let (a, b) = (Shared(a.as_mut_ptr()), Shared(b.as_mut_ptr()));
        let c = Shared(c.as_mut_ptr());
        let (a, b, c) = (&a, &b, &c);
        self.run(rows.div_ceil(step), |index| {
            let first = index * step;
            let count = step.min(rows - first);
            // SAFETY: the rows `first..first + count` are this part's alone, and within bounds,
            // which were checked above; the slices are borrowed until the run has ended.
            let (a, b, c) = unsafe {
                (
                    a.part(first * a_width, count * a_width),
                    b.part(first * b_width, count * b_width),
                    c.part(first * c_width, count * c_width),
                )
            };
            part(first, a, b, c);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_written_once() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads).expect("threads");
            for (rows, step) in [(0, 1), (1, 4), (7, 2), (64, 5), (10, 0)] {
                let mut a = vec![0u32; rows * 3];
                let mut b = vec![0u32; rows * 2];
                let mut c = vec![0u8; rows];
                let matrices = ((&mut a[..], 3), (&mut b[..], 2), (&mut c[..], 1));
                pool.rows(
                    rows,
                    step,
                    matrices.0,
                    matrices.1,
                    matrices.2,
                    |first, a, b, c| {
                        for (row, a) in a.chunks_exact_mut(3).enumerate() {
                            a.fill((first + row) as u32 + 1);
                        }
                        b.iter_mut().for_each(|b| *b += 1);
                        c.iter_mut().for_each(|c| *c += 1);
                    },
                );
                assert!(a.iter().enumerate().all(|(at, a)| *a == at as u32 / 3 + 1));
                assert!(b.iter().all(|b| *b == 1));
                assert!(c.iter().all(|c| *c == 1));
            }
        }
    }
}
