//! The quantised blocks of GGUF files, one at a time, as in ggml's `ggml-common.h` (the structs) and
//! `ggml-quants.c` (`dequantize_row_*`). All numbers are little-endian.

/// Columns of a super-block of the K types.
pub(super) const SUPER: usize = 256;

/// The GGUF tensor types that can be repacked, by ggml's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WeightType {
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4K,
    Q5K,
    Q6K,
    F16,
    BF16,
    F32,
}

impl WeightType {
    pub const ALL: [Self; 11] = [
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::F16,
        Self::BF16,
        Self::F32,
    ];

    /// Columns of a block; 1 for the dense types.
    pub fn block_columns(self) -> usize {
        match self {
            Self::F16 | Self::BF16 | Self::F32 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4K | Self::Q5K | Self::Q6K => SUPER,
        }
    }

    /// Bytes of a block in the file.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4K => 144,
            Self::Q5K => 176,
            Self::Q6K => 210,
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
        }
    }
}

#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Adds the fifth bits of 32 quants: `qh` of Q5_0 and Q5_1.
#[inline]
fn fifth_bits(quants: &mut [u8; 32], bits: u32) {
    for (column, quant) in quants.iter_mut().enumerate() {
        *quant |= ((bits >> column) as u8 & 1) << 4;
    }
}

/// Unpacks 16 bytes of nibbles: the low ones are columns 0..16, the high ones 16..32.
#[inline]
fn nibbles(bytes: &[u8]) -> [u8; 32] {
    let mut quants = [0; 32];
    for (column, byte) in bytes[..16].iter().enumerate() {
        quants[column] = byte & 15;
        quants[column + 16] = byte >> 4;
    }
    quants
}

/// `block_q5_0` (22 bytes): `d: f16, qh: u32, qs: [u8; 16]`; value `d · (q − 16)`. Gives `q`.
#[inline]
pub(super) fn q5_0(block: &[u8]) -> [u8; 32] {
    let mut quants = nibbles(&block[6..]);
    fifth_bits(
        &mut quants,
        u32::from_le_bytes([block[2], block[3], block[4], block[5]]),
    );
    quants
}

/// `block_q5_1` (24 bytes): `d: f16, m: f16, qh: u32, qs: [u8; 16]`; value `d · q + m`. Gives `q`.
#[inline]
pub(super) fn q5_1(block: &[u8]) -> [u8; 32] {
    let mut quants = nibbles(&block[8..]);
    fifth_bits(
        &mut quants,
        u32::from_le_bytes([block[4], block[5], block[6], block[7]]),
    );
    quants
}

/// The 6-bit scale and minimum of block `index` (0..8) of a Q4_K or Q5_K super-block, from its 12
/// packed bytes: ggml's `get_scale_min_k4`.
#[inline]
pub(super) fn scale_min(packed: &[u8], index: usize) -> (u8, u8) {
    if index < 4 {
        (packed[index] & 63, packed[index + 4] & 63)
    } else {
        (
            (packed[index + 4] & 15) | ((packed[index - 4] >> 6) << 4),
            (packed[index + 4] >> 4) | ((packed[index] >> 6) << 4),
        )
    }
}

/// `block_q4_K` (144 bytes): `d: f16, dmin: f16, scales: [u8; 12], qs: [u8; 128]`; value
/// `d · scale · q − dmin · min`. Gives `q` of the 32 columns of block `index`.
#[inline]
pub(super) fn q4_k(block: &[u8], index: usize) -> [u8; 32] {
    let bytes = &block[16 + index / 2 * 32..][..32];
    let shift = index % 2 * 4;
    let mut quants = [0; 32];
    for (quant, byte) in quants.iter_mut().zip(bytes) {
        *quant = (byte >> shift) & 15;
    }
    quants
}

/// `block_q5_K` (176 bytes): `d: f16, dmin: f16, scales: [u8; 12], qh: [u8; 32], qs: [u8; 128]`;
/// value as Q4_K's, with bit `index` of `qh[column]` as the fifth.
#[inline]
pub(super) fn q5_k(block: &[u8], index: usize) -> [u8; 32] {
    let high = &block[16..48];
    let bytes = &block[48 + index / 2 * 32..][..32];
    let shift = index % 2 * 4;
    let mut quants = [0; 32];
    for ((quant, byte), high) in quants.iter_mut().zip(bytes).zip(high) {
        *quant = ((byte >> shift) & 15) | (((high >> index) & 1) << 4);
    }
    quants
}

/// `block_q6_K` (210 bytes): `ql: [u8; 128], qh: [u8; 64], scales: [i8; 16], d: f16`; value
/// `d · scale · (q − 32)` with a scale per 16 columns. Gives `q` of the 32 columns of block `index`.
#[inline]
pub(super) fn q6_k(block: &[u8], index: usize) -> [u8; 32] {
    let (half, quarter) = (index / 4, index % 4);
    let low = &block[half * 64 + quarter % 2 * 32..][..32];
    let high = &block[128 + half * 32..][..32];
    let mut quants = [0; 32];
    for ((quant, low), high) in quants.iter_mut().zip(low).zip(high) {
        let low = (low >> (quarter / 2 * 4)) & 15;
        *quant = low | (((high >> (quarter * 2)) & 3) << 4);
    }
    quants
}
