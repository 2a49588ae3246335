//! Safe parallel writes to slices: each part of a [`Pool`]'s run gets rows that no other part has.

use super::pool::Pool;

/// A matrix to be written row by row: `values` holds rows of `width` elements.
pub struct RowsMut<'a, T> {
    pub values: &'a mut [T],
    /// 0 for no matrix: then each part gets an empty slice.
    pub width: usize,
}

impl<'a, T> RowsMut<'a, T> {
    pub fn new(values: &'a mut [T], width: usize) -> Self {
        Self { values, width }
    }

    fn shared(self, rows: usize) -> SharedRows<T> {
        assert!(self.values.len() >= rows * self.width, "too few rows");
        SharedRows {
            start: self.values.as_mut_ptr(),
            width: self.width,
        }
    }
}

/// The same behind a pointer that all threads may use, each for its own rows.
struct SharedRows<T> {
    start: *mut T,
    width: usize,
}

// SAFETY: `Pool::rows3` gives each part rows that no other part has.
unsafe impl<T: Send> Sync for SharedRows<T> {}

impl<T> SharedRows<T> {
    /// Rows `first..first + count`.
    ///
    /// # Safety
    /// The rows are in bounds of a slice that lives, and nobody else uses them.
    unsafe fn part<'a>(&self, first: usize, count: usize) -> &'a mut [T] {
        // SAFETY: as this function's.
        unsafe {
            let start = self.start.add(first * self.width);
            std::slice::from_raw_parts_mut(start, count * self.width)
        }
    }
}

impl Pool {
    /// Calls `part(first row, rows of a)` for every `step` of `rows` rows.
    ///
    /// # Panics
    /// If the matrix has fewer rows.
    pub fn rows1<A: Send>(
        &self,
        rows: usize,
        step: usize,
        a: RowsMut<'_, A>,
        part: impl Fn(usize, &mut [A]) + Sync,
    ) {
        let none = RowsMut::<u8>::new(&mut [], 0);
        self.rows2(rows, step, a, none, |first, a, _| part(first, a));
    }

    /// The same for two matrices.
    ///
    /// # Panics
    /// As [`Self::rows1`].
    pub fn rows2<A: Send, B: Send>(
        &self,
        rows: usize,
        step: usize,
        a: RowsMut<'_, A>,
        b: RowsMut<'_, B>,
        part: impl Fn(usize, &mut [A], &mut [B]) + Sync,
    ) {
        let none = RowsMut::<u8>::new(&mut [], 0);
        self.rows3(rows, step, a, b, none, |first, a, b, _| part(first, a, b));
    }

    /// The same for three matrices.
    ///
    /// # Panics
    /// As [`Self::rows1`].
    pub fn rows3<A: Send, B: Send, C: Send>(
        &self,
        rows: usize,
        step: usize,
        a: RowsMut<'_, A>,
        b: RowsMut<'_, B>,
        c: RowsMut<'_, C>,
        part: impl Fn(usize, &mut [A], &mut [B], &mut [C]) + Sync,
    ) {
        let (a, b, c) = (&a.shared(rows), &b.shared(rows), &c.shared(rows));
        let step = step.max(1);
        self.run(rows.div_ceil(step), |index| {
            let first = index * step;
            let count = step.min(rows - first);
            // SAFETY: the rows `first..first + count` are this part's alone, and within bounds,
            // which `shared` checked; the slices are borrowed until the run has ended.
            let (a, b, c) = unsafe {
                (
                    a.part(first, count),
                    b.part(first, count),
                    c.part(first, count),
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
                pool.rows3(
                    rows,
                    step,
                    RowsMut::new(&mut a, 3),
                    RowsMut::new(&mut b, 2),
                    RowsMut::new(&mut c, 1),
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
