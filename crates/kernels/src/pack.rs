//! Weights in the layout of the products: repacked at load, sixteen rows interleaved, without loss.
//!
//! "Without loss" means that every weight has the value that ggml's `dequantize_row_*` gives in f32,
//! from the same integers and the same f16 scales, stored at their original width:
//!
//! | from | quants | per 32 columns | value |
//! |---|---|---|---|
//! | Q4_0 | 4 bits | f16 scale | `d · (q − 8)` |
//! | Q4_1 | 4 bits | f16 scale and minimum | `d · q + m` |
//! | Q4_K | 4 bits | u8 scale and minimum; two f16 per 256 | `(d·s) · q − dmin·m` |
//! | Q8_0 | 8 bits | f16 scale | `d · q` |
//! | Q5_0 | 8 bits, from 5 | f16 scale | `d · (q − 16)` |
//! | Q5_1 | 8 bits, from 5 | f16 scale and minimum | `d · q + m` |
//! | Q5_K | 8 bits, from 5 | as Q4_K | as Q4_K |
//! | Q6_K | 8 bits, from 6 | two i8 scales; an f16 per 256 | `(d·s) · (q − 32)` |
//! | F16, BF16, F32 | as they are | | |
//!
//! A group is sixteen rows (the last one is padded with zeros). Within a group, each block of 32
//! columns stores its quants in quads: 64 bytes that hold four columns of each row, one 512-bit
//! register. Bytes hold the eight quads in order; nibbles hold quad `j` low and quad `j + 4` high, as
//! Q4_0 and Q4_1 already do. Signed types are stored with an offset of 128.

use super::aligned::Aligned;
use super::gguf::{self, SUPER, WeightType, u16_at};
use super::half;
use super::pool::Pool;
use super::quant::BLOCK;
use super::simd::LANES;
use crate::memory::OutOfMemory;

/// How weights are stored; each format has its own kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Format {
    /// Nibbles with an offset of 8, f16 scale (Q4_0).
    U4,
    /// Nibbles, f16 scale and minimum (Q4_1).
    U4Min,
    /// Nibbles, two-level scales and minima (Q4_K).
    U4Super,
    /// Bytes with an offset of 128, f16 scale (Q8_0, Q5_0).
    I8,
    /// Bytes, f16 scale and minimum (Q5_1).
    U8Min,
    /// Bytes, two-level scales and minima (Q5_K).
    U8Super,
    /// Bytes with an offset of 32, two-level scales per 16 columns (Q6_K).
    U8Half,
    /// Dense IEEE half precision.
    F16,
    /// Dense bfloat16.
    Bf16,
    /// Dense single precision.
    F32,
}

impl Format {
    /// The format that a GGUF type is repacked to.
    fn of(dtype: WeightType) -> Self {
        match dtype {
            WeightType::Q4_0 => Self::U4,
            WeightType::Q4_1 => Self::U4Min,
            WeightType::Q4K => Self::U4Super,
            WeightType::Q8_0 | WeightType::Q5_0 => Self::I8,
            WeightType::Q5_1 => Self::U8Min,
            WeightType::Q5K => Self::U8Super,
            WeightType::Q6K => Self::U8Half,
            WeightType::F16 => Self::F16,
            WeightType::BF16 => Self::Bf16,
            WeightType::F32 => Self::F32,
        }
    }

    /// Whether weights are dense, and multiplied in f32 with unquantised activations.
    pub fn is_dense(self) -> bool {
        matches!(self, Self::F16 | Self::Bf16 | Self::F32)
    }

    /// Bytes of 16 rows × 32 columns of quants, or of 16 rows × 1 column of dense weights.
    pub(super) fn step_bytes(self) -> usize {
        match self {
            Self::U4 | Self::U4Min | Self::U4Super => 256,
            Self::I8 | Self::U8Min | Self::U8Super | Self::U8Half => 512,
            Self::F16 | Self::Bf16 => 32,
            Self::F32 => 64,
        }
    }

    /// Whether scales come in two levels.
    pub(super) fn is_super(self) -> bool {
        matches!(self, Self::U4Super | Self::U8Super | Self::U8Half)
    }

    /// The lengths of a group of sixteen rows of `cols` columns.
    fn group(self, cols: usize) -> Lengths {
        let steps = if self.is_dense() { cols } else { cols / BLOCK };
        let scales = match self {
            _ if self.is_dense() => 0,
            _ if self.is_super() => cols / SUPER * LANES,
            _ => steps * LANES,
        };
        Lengths {
            quants: steps * self.step_bytes(),
            scales,
            mins: if self.has_min() { scales } else { 0 },
            fine: if self.is_super() {
                steps * 2 * LANES
            } else {
                0
            },
        }
    }

    /// Whether there are f16 minima.
    pub(super) fn has_min(self) -> bool {
        matches!(
            self,
            Self::U4Min | Self::U8Min | Self::U4Super | Self::U8Super
        )
    }
}

/// Why a tensor cannot be repacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    #[error("{cols} columns are not a multiple of {block}, the block of {dtype:?}")]
    Columns {
        cols: usize,
        block: usize,
        dtype: WeightType,
    },
    #[error("{rows} × {cols} weights of {dtype:?} take {expected} bytes, and there are {found}")]
    Bytes {
        rows: usize,
        cols: usize,
        dtype: WeightType,
        expected: usize,
        found: usize,
    },
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
}

/// Lengths of one group in each array of a [`PackedMatrix`].
struct Lengths {
    quants: usize,
    scales: usize,
    mins: usize,
    fine: usize,
}

/// A weight matrix `[rows = outputs, cols = inputs]`, repacked.
pub struct PackedMatrix {
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) format: Format,
    /// Quants `[groups][blocks][quads of 64 bytes]`, or dense weights `[groups][cols][16]`.
    pub(super) quants: Aligned<u8>,
    /// f16 scales `[groups][blocks or super-blocks][16]`.
    pub(super) scales: Aligned<u16>,
    /// f16 minima, laid out as the scales. Those of the K types are negated, so that all are added.
    pub(super) mins: Aligned<u16>,
    /// Second-level scales `[groups][blocks][2][16]`: scale and minimum as `u8`, or (Q6_K) the scales
    /// of the two halves as `i8`.
    pub(super) fine: Aligned<u8>,
}

/// The arrays of a [`PackedMatrix`], for a copy on another device.
#[derive(Debug, Clone, Copy)]
pub struct PackedParts<'a> {
    /// `[groups][blocks][quads of 64 bytes]`, or dense weights `[groups][cols][16]`.
    pub quants: &'a [u8],
    /// f16 `[groups][blocks or super-blocks][16]`.
    pub scales: &'a [u16],
    /// f16, laid out as the scales.
    pub mins: &'a [u16],
    /// `[groups][blocks][2][16]`.
    pub fine: &'a [u8],
}

/// A pointer that threads may write through, each to its own elements.
#[derive(Clone, Copy)]
pub(super) struct Shared<T>(*mut T);
// SAFETY: the code that creates one states why no two threads touch the same element.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(slice: &mut [T]) -> Self {
        Self(slice.as_mut_ptr())
    }

    pub(super) fn get(self) -> *mut T {
        self.0
    }

    /// Elements `at..at + len` of the slice.
    ///
    /// # Safety
    /// In bounds; the slice lives; nobody else uses these elements.
    unsafe fn part<'a>(self, at: usize, len: usize) -> &'a mut [T] {
        // SAFETY: as this function's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(at), len) }
    }
}

/// One group's slice of each array of a matrix.
struct Group<'a> {
    quants: &'a mut [u8],
    scales: &'a mut [u16],
    mins: &'a mut [u16],
    fine: &'a mut [u8],
}

impl PackedMatrix {
    /// Repacks `bytes`, the blocks of a GGUF tensor `[rows, cols]`. Row `i` of the result is row
    /// `from(i)` of the tensor.
    ///
    /// # Errors
    /// The bytes do not fill the shape, or there is no memory for the result.
    pub fn pack_rows(
        pool: &Pool,
        dtype: WeightType,
        (rows, cols): (usize, usize),
        bytes: &[u8],
        from: &(dyn Fn(usize) -> usize + Sync),
    ) -> Result<Self, PackError> {
        let format = Format::of(dtype);
        let (block_bytes, block) = (dtype.block_bytes(), dtype.block_columns());
        if !cols.is_multiple_of(block) {
            return Err(PackError::Columns { cols, block, dtype });
        }
        let row_bytes = cols / block * block_bytes;
        let expected = rows.saturating_mul(row_bytes);
        if bytes.len() != expected {
            let found = bytes.len();
            return Err(PackError::Bytes {
                rows,
                cols,
                dtype,
                expected,
                found,
            });
        }

        let groups = rows.div_ceil(LANES);
        let Lengths {
            quants,
            scales,
            mins,
            fine,
        } = format.group(cols);
        let mut packed = Self {
            rows,
            cols,
            format,
            quants: Aligned::zeroed(groups.saturating_mul(quants))?,
            scales: Aligned::zeroed(groups.saturating_mul(scales))?,
            mins: Aligned::zeroed(groups.saturating_mul(mins))?,
            fine: Aligned::zeroed(groups.saturating_mul(fine))?,
        };

        let parts = (
            Shared::new(&mut packed.quants),
            Shared::new(&mut packed.scales),
            Shared::new(&mut packed.mins),
            Shared::new(&mut packed.fine),
        );
        pool.run(groups, |index| {
            // SAFETY: each group is one part of the run and has its own range of each array, which were
            // allocated for `groups` groups just above.
            let mut group = unsafe {
                Group {
                    quants: parts.0.part(index * quants, quants),
                    scales: parts.1.part(index * scales, scales),
                    mins: parts.2.part(index * mins, mins),
                    fine: parts.3.part(index * fine, fine),
                }
            };
            let first = index * LANES;
            for lane in 0..LANES.min(rows - first) {
                let row = &bytes[from(first + lane) * row_bytes..][..row_bytes];
                pack_row(dtype, row, lane, &mut group);
            }
        });
        Ok(packed)
    }

    /// Bytes that a GGUF tensor `[rows, cols]` takes when repacked.
    pub fn bytes_of(dtype: WeightType, rows: usize, cols: usize) -> usize {
        let group = Format::of(dtype).group(cols);
        let halves = 2 * (group.scales + group.mins);
        let bytes = group.quants + group.fine + halves;
        rows.div_ceil(LANES).saturating_mul(bytes)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Bytes in memory, which are also the bytes that a product streams.
    pub fn bytes(&self) -> usize {
        self.quants.len() + self.fine.len() + 2 * (self.scales.len() + self.mins.len())
    }

    pub fn parts(&self) -> PackedParts<'_> {
        PackedParts {
            quants: &self.quants,
            scales: &self.scales,
            mins: &self.mins,
            fine: &self.fine,
        }
    }

    /// Groups of sixteen rows.
    pub(super) fn groups(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Dequantises a row: an embedding, if the table is also the output head.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not `cols` long.
    pub fn row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows, "row {row} of {}", self.rows);
        assert_eq!(out.len(), self.cols);
        let (group, lane) = (row / LANES, row % LANES);
        if self.format.is_dense() {
            let width = self.format.step_bytes() / LANES;
            let from = &self.quants[group * self.cols * LANES * width..];
            for (column, value) in out.iter_mut().enumerate() {
                let bytes = &from[(column * LANES + lane) * width..][..width];
                *value = match self.format {
                    Format::F16 => half::f16_to_f32(u16_at(bytes, 0)),
                    Format::Bf16 => half::bf16_to_f32(u16_at(bytes, 0)),
                    _ => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
                };
            }
            return;
        }
        for (index, out) in out.chunks_exact_mut(BLOCK).enumerate() {
            let (quants, [low, high], min) = self.block(row, index);
            for (column, (value, quant)) in out.iter_mut().zip(quants).enumerate() {
                let scale = if column < BLOCK / 2 { low } else { high };
                // The product is exact (11 + 7 + 6 bits at most); only the sum rounds.
                *value = scale * f32::from(quant) + min;
            }
        }
    }

    /// A row's block of 32 columns: quants without their offset, the scales of the two halves, and the
    /// minimum (0 if there is none).
    pub(super) fn block(&self, row: usize, index: usize) -> ([i16; BLOCK], [f32; 2], f32) {
        let (group, lane) = (row / LANES, row % LANES);
        let step = self.format.step_bytes();
        let stored = &self.quants[(group * (self.cols / BLOCK) + index) * step..][..step];
        let offset = match self.format {
            Format::U4 => 8,
            Format::I8 => 128,
            Format::U8Half => 32,
            _ => 0,
        };
        let quants = std::array::from_fn(|column| {
            let (quad, byte) = (column / 4, column % 4);
            let quant = if step == 256 {
                (stored[quad % 4 * 64 + lane * 4 + byte] >> (quad / 4 * 4)) & 15
            } else {
                stored[quad * 64 + lane * 4 + byte]
            };
            i16::from(quant) - offset
        });
        let (scales, min) = self.scales(group, index, lane);
        (quants, scales, min)
    }

    /// The scales of the two halves of a block, and its minimum.
    fn scales(&self, group: usize, block: usize, lane: usize) -> ([f32; 2], f32) {
        let blocks = self.cols / BLOCK;
        let at = group * blocks + block;
        let coarse = if self.format.is_super() {
            group * (self.cols / SUPER) + block / (SUPER / BLOCK)
        } else {
            at
        } * LANES
            + lane;
        let scale = half::f16_to_f32(self.scales[coarse]);
        let min = if self.format.has_min() {
            half::f16_to_f32(self.mins[coarse])
        } else {
            0.0
        };
        if !self.format.is_super() {
            return ([scale; 2], min);
        }
        let first = self.fine[at * 2 * LANES + lane];
        let second = self.fine[(at * 2 + 1) * LANES + lane];
        if self.format == Format::U8Half {
            let signed = |byte: u8| f32::from(byte.cast_signed());
            ([scale * signed(first), scale * signed(second)], 0.0)
        } else {
            ([scale * f32::from(first); 2], min * f32::from(second))
        }
    }
}

/// Writes one row to its lane of a group.
fn pack_row(dtype: WeightType, row: &[u8], lane: usize, group: &mut Group<'_>) {
    let block_bytes = dtype.block_bytes();
    let blocks = row.chunks_exact(block_bytes).enumerate();
    let at = lane * 4;
    match dtype {
        // `block_q4_0`, 18 bytes: `d: f16, qs: [u8; 16]`.
        // `block_q4_1`, 20 bytes: `d: f16, m: f16, qs: [u8; 16]`.
        WeightType::Q4_0 | WeightType::Q4_1 => {
            let header = block_bytes - 16;
            for (index, block) in blocks {
                group.scales[index * LANES + lane] = u16_at(block, 0);
                if header == 4 {
                    group.mins[index * LANES + lane] = u16_at(block, 2);
                }
                let to = &mut group.quants[index * 256..][..256];
                for (quad, bytes) in block[header..].chunks_exact(4).enumerate() {
                    to[quad * 64 + at..][..4].copy_from_slice(bytes);
                }
            }
        }
        // `block_q8_0`, 34 bytes: `d: f16, qs: [i8; 32]`.
        WeightType::Q8_0 => {
            for (index, block) in blocks {
                group.scales[index * LANES + lane] = u16_at(block, 0);
                let quants = std::array::from_fn(|column| block[2 + column]);
                put_bytes(group.quants, index, lane, quants, 128);
            }
        }
        WeightType::Q5_0 => {
            for (index, block) in blocks {
                group.scales[index * LANES + lane] = u16_at(block, 0);
                put_bytes(group.quants, index, lane, gguf::q5_0(block), 128 - 16);
            }
        }
        WeightType::Q5_1 => {
            for (index, block) in blocks {
                group.scales[index * LANES + lane] = u16_at(block, 0);
                group.mins[index * LANES + lane] = u16_at(block, 2);
                put_bytes(group.quants, index, lane, gguf::q5_1(block), 0);
            }
        }
        WeightType::Q4K | WeightType::Q5K => {
            for (index, block) in blocks {
                group.scales[index * LANES + lane] = u16_at(block, 0);
                group.mins[index * LANES + lane] = u16_at(block, 2) ^ 0x8000;
                for inner in 0..SUPER / BLOCK {
                    let (scale, min) = gguf::scale_min(&block[4..16], inner);
                    let index = index * (SUPER / BLOCK) + inner;
                    group.fine[index * 2 * LANES + lane] = scale;
                    group.fine[(index * 2 + 1) * LANES + lane] = min;
                    if dtype == WeightType::Q5K {
                        put_bytes(group.quants, index, lane, gguf::q5_k(block, inner), 0);
                    } else {
                        put_nibbles(group.quants, index, lane, gguf::q4_k(block, inner));
                    }
                }
            }
        }
        WeightType::Q6K => {
            for (index, block) in blocks {
                group.scales[index * LANES + lane] = u16_at(block, 208);
                for inner in 0..SUPER / BLOCK {
                    let scales = &block[192 + inner * 2..];
                    let index = index * (SUPER / BLOCK) + inner;
                    group.fine[index * 2 * LANES + lane] = scales[0];
                    group.fine[(index * 2 + 1) * LANES + lane] = scales[1];
                    put_bytes(group.quants, index, lane, gguf::q6_k(block, inner), 0);
                }
            }
        }
        // Each column is a block.
        WeightType::F16 | WeightType::BF16 | WeightType::F32 => {
            for (column, value) in blocks {
                let at = (column * LANES + lane) * block_bytes;
                group.quants[at..][..block_bytes].copy_from_slice(value);
            }
        }
    }
}

/// Stores a row's 32 quants of block `index` as bytes, `offset` added (modulo 256).
#[inline]
fn put_bytes(to: &mut [u8], index: usize, lane: usize, quants: [u8; BLOCK], offset: u8) {
    let to = &mut to[index * 512..][..512];
    for (quad, quants) in quants.chunks_exact(4).enumerate() {
        let bytes: [u8; 4] = std::array::from_fn(|byte| quants[byte].wrapping_add(offset));
        to[quad * 64 + lane * 4..][..4].copy_from_slice(&bytes);
    }
}

/// Stores a row's 32 quants of block `index` as nibbles: quad `j` low, quad `j + 4` high.
#[inline]
fn put_nibbles(to: &mut [u8], index: usize, lane: usize, quants: [u8; BLOCK]) {
    let to = &mut to[index * 256..][..256];
    for quad in 0..4 {
        for byte in 0..4 {
            let (low, high) = (quants[quad * 4 + byte], quants[quad * 4 + byte + 16]);
            to[quad * 64 + lane * 4 + byte] = low | (high << 4);
        }
    }
}
