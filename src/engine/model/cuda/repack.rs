//! How the device stores weights, where it differs from the CPU: quants of five and six bits have no byte for each,
//! and dense rows are cut into vectors of 16 bytes, one load of a thread.

use std::borrow::Cow;

use crate::engine::kernels::{BLOCK, Format, PackedMatrix};

/// Rows of a group.
pub(super) const GROUP: usize = 16;

/// Bytes of a group's block of 32 columns with a byte for each weight.
const BYTES: usize = GROUP * BLOCK;
/// The same with nibbles, which the upper bits follow.
const NIBBLES: usize = BYTES / 2;
/// Bytes between the quads of a block.
const QUAD: usize = 4 * GROUP;
/// Bytes of a row's columns that lie side by side, with dense weights.
const VECTOR: usize = 16;

/// A format of the kernels: `Format` in `matrix.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Stored {
    U4,
    U4Min,
    U4Super,
    /// Five bits with an offset of 16, f16 scale (Q5_0).
    U5,
    /// Five bits, f16 scale and minimum (Q5_1).
    U5Min,
    /// Five bits, two-level scales and minima (Q5_K).
    U5Super,
    /// Six bits with an offset of 32, two-level scales per 16 columns (Q6_K).
    U6Half,
    I8,
    F16,
    Bf16,
    F32,
}

/// The quants of a matrix as the device stores them, and their format.
pub(super) fn quants(matrix: &PackedMatrix) -> (Stored, Cow<'_, [u8]>) {
    let quants = matrix.parts().quants;
    let (stored, offset) = match matrix.format() {
        Format::U4 => return (Stored::U4, quants.into()),
        Format::U4Min => return (Stored::U4Min, quants.into()),
        Format::U4Super => return (Stored::U4Super, quants.into()),
        Format::F16 => return (Stored::F16, vectors::<2>(matrix).into()),
        Format::Bf16 => return (Stored::Bf16, vectors::<2>(matrix).into()),
        Format::F32 => return (Stored::F32, vectors::<4>(matrix).into()),
        // Q5_0 if its bytes are those of −16..16. Another type with no others loses nothing either.
        Format::I8 => (Stored::U5, 128 - 16),
        Format::U8Min => (Stored::U5Min, 0),
        Format::U8Super => (Stored::U5Super, 0),
        Format::U8Half => (Stored::U6Half, 0),
    };
    match narrow(matrix, offset, if stored == Stored::U6Half { 2 } else { 1 }) {
        Some(quants) => (stored, quants.into()),
        None => {
            assert_eq!(stored, Stored::U5, "{stored:?} with a larger quant");
            (Stored::I8, quants.into())
        }
    }
}

/// Dense weights of `WIDTH` bytes as `[groups][vectors][16 rows][16 bytes]`. The last vector of a row is padded
/// with zeros.
fn vectors<const WIDTH: usize>(matrix: &PackedMatrix) -> Vec<u8> {
    let columns = VECTOR / WIDTH;
    let steps = matrix.cols().div_ceil(columns);
    let mut vectors = vec![0; matrix.rows().div_ceil(GROUP) * steps * GROUP * VECTOR];
    let groups = matrix.parts().quants.chunks(matrix.cols() * GROUP * WIDTH);
    for (from, to) in groups.zip(vectors.chunks_mut(steps * GROUP * VECTOR)) {
        let steps = from.chunks(columns * GROUP * WIDTH);
        for (from, to) in steps.zip(to.chunks_exact_mut(GROUP * VECTOR)) {
            for (column, rows) in from.chunks_exact(GROUP * WIDTH).enumerate() {
                for (row, weight) in rows.chunks_exact(WIDTH).enumerate() {
                    to[row * VECTOR + column * WIDTH..][..WIDTH].copy_from_slice(weight);
                }
            }
        }
    }
    vectors
}

/// The quants minus `offset` as nibbles, and `above` more bits. `None` if one needs more.
fn narrow(matrix: &PackedMatrix, offset: u8, above: usize) -> Option<Vec<u8>> {
    let bytes = matrix.parts().quants;
    let blocks = matrix.cols() / BLOCK;
    let step = NIBBLES + above * GROUP * size_of::<u32>();
    let mut narrow = vec![0; bytes.len() / BYTES * step];
    let mut block = [0; BYTES];
    for (index, (from, to)) in bytes
        .chunks_exact(BYTES)
        .zip(narrow.chunks_exact_mut(step))
        .enumerate()
    {
        for (quant, byte) in block.iter_mut().zip(from) {
            *quant = byte.wrapping_sub(offset);
        }
        // Rows of padding hold anything: nobody reads their products.
        let rows = (matrix.rows() - index / blocks * GROUP).min(GROUP);
        let quads = block.chunks_exact_mut(QUAD);
        let most = quads.fold(0, |most, quad| {
            quad[4 * rows..].fill(0);
            quad.iter().fold(most, |most, quant| most | quant)
        });
        if most >> (4 + above) != 0 {
            return None;
        }
        let (nibbles, upper) = to.split_at_mut(NIBBLES);
        let (first, second) = block.split_at(NIBBLES);
        for ((nibble, low), high) in nibbles.iter_mut().zip(first).zip(second) {
            *nibble = (low & 15) | (high << 4);
        }
        upper_bits(&block, above, upper);
    }
    Some(narrow)
}

/// Writes bits 4 to 4 + `above` of a block as the words that `matrix.h` describes.
fn upper_bits(block: &[u8; BYTES], above: usize, to: &mut [u8]) {
    let quads_of_a_word = 8 / above;
    let mask = if above == 1 { 0x0101_0101 } else { 0x0303_0303 };
    let words = block.chunks_exact(quads_of_a_word * QUAD);
    for (quads, to) in words.zip(to.chunks_exact_mut(QUAD)) {
        let mut words = [0u32; GROUP];
        for (quad, quants) in quads.chunks_exact(QUAD).enumerate() {
            for (word, quants) in words.iter_mut().zip(quants.chunks_exact(4)) {
                let quants = u32::from_le_bytes([quants[0], quants[1], quants[2], quants[3]]);
                *word |= (quants >> 4 & mask) << (quad * above);
            }
        }
        for (to, word) in to.chunks_exact_mut(4).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::kernels::{Pool, WeightType};

    /// A matrix from `bytes` that repeat, with f16 scales of any value.
    fn packed(dtype: WeightType, rows: usize, cols: usize, seed: u32) -> PackedMatrix {
        let len = rows * cols / dtype.block_columns() * dtype.block_bytes();
        let byte = |at: u32| (at.wrapping_mul(0x9e37_79b9).wrapping_add(seed) >> 13) as u8;
        let bytes: Vec<u8> = (0..len as u32).map(byte).collect();
        let pool = Pool::new(1).expect("no threads");
        PackedMatrix::pack_rows(&pool, dtype, (rows, cols), &bytes, &|row| row).expect("a matrix")
    }

    /// A quant as stored, read as `matrix.h` describes.
    fn quant(stored: Stored, block: &[u8], row: usize, column: usize) -> u8 {
        let (quad, byte) = (column / 4, column % 4);
        let nibble = block[quad % 4 * QUAD + row * 4 + byte] >> (quad / 4 * 4) & 15;
        let word = |at: usize| {
            let word = &block[NIBBLES + 4 * (at * GROUP + row)..][..4];
            u32::from_le_bytes([word[0], word[1], word[2], word[3]])
        };
        let upper = match stored {
            Stored::U6Half => word(quad / 4) >> (8 * byte + 2 * (quad % 4)) & 3,
            _ => word(0) >> (8 * byte + quad) & 1,
        };
        nibble | (upper as u8) << 4
    }

    #[test]
    fn five_and_six_bits_keep_every_quant() {
        for (dtype, stored, offset, rows) in [
            (WeightType::Q5_0, Stored::U5, 112, 48),
            // The last group has rows of padding.
            (WeightType::Q5_0, Stored::U5, 112, 19),
            (WeightType::Q5_1, Stored::U5Min, 0, 21),
            (WeightType::Q5K, Stored::U5Super, 0, 17),
            (WeightType::Q6K, Stored::U6Half, 0, 16),
        ] {
            let cols = 512;
            let matrix = packed(dtype, rows, cols, 3);
            let (format, quants) = quants(&matrix);
            assert_eq!(format, stored);
            let bytes = matrix.parts().quants;
            let step = quants.len() / (bytes.len() / BYTES);
            assert_eq!(step, if stored == Stored::U6Half { 384 } else { 320 });
            for row in 0..rows {
                for column in 0..cols {
                    let at = row / GROUP * (cols / BLOCK) + column / BLOCK;
                    let (row, column) = (row % GROUP, column % BLOCK);
                    let byte = bytes[at * BYTES + column / 4 * QUAD + row * 4 + column % 4];
                    let found = quant(stored, &quants[at * step..][..step], row, column);
                    assert_eq!(found, byte - offset, "{dtype:?}, {row}, {column}");
                }
            }
        }
    }

    #[test]
    fn dense_rows_are_cut_into_vectors() {
        for (dtype, stored, width) in [
            (WeightType::BF16, Stored::Bf16, 2),
            (WeightType::F16, Stored::F16, 2),
            (WeightType::F32, Stored::F32, 4),
        ] {
            for cols in [1, 5, 16, 43] {
                let matrix = packed(dtype, 21, cols, 5);
                let (format, found) = quants(&matrix);
                assert_eq!(format, stored);
                let steps = cols.div_ceil(VECTOR / width);
                assert_eq!(found.len(), 2 * steps * GROUP * VECTOR);
                let weights = matrix.parts().quants;
                for at in 0..2 * steps * GROUP * VECTOR / width {
                    let (vector, column) = (at * width / VECTOR, at % (VECTOR / width));
                    let (step, row) = (vector / GROUP, vector % GROUP);
                    let column = step % steps * (VECTOR / width) + column;
                    let from = (step / steps * cols + column) * GROUP + row;
                    let expected = match column < cols {
                        true => &weights[from * width..][..width],
                        false => &[0; 4][..width],
                    };
                    assert_eq!(&found[at * width..][..width], expected, "{dtype:?}, {at}");
                }
            }
        }
    }

    #[test]
    fn quants_of_eight_bits_stay_bytes() {
        let matrix = packed(WeightType::Q8_0, 17, 64, 1);
        let (format, quants) = quants(&matrix);
        assert_eq!(format, Stored::I8);
        assert_eq!(*quants, *matrix.parts().quants);
    }
}
