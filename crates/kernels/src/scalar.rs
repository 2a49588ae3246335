//! The primitives on arrays: any processor, no intrinsics. Correct everywhere, and slow without
//! hardware fused multiply-add.

use super::half;
use super::simd::{LANES, NOT_FINITE, Simd, primitives};
#[cfg(test)]
use super::winograd::Pairing;

/// Arrays of sixteen lanes.
pub(super) enum Scalar {}

/// Applies a function lane by lane.
macro_rules! lanes {
    (|$i:ident| $value:expr) => {{
        let mut out = [Default::default(); LANES];
        for $i in 0..LANES {
            out[$i] = $value;
        }
        out
    }};
}

/// `acc + Σ (w + offset)·a` over each lane's quad.
#[inline(always)]
fn dot_with(acc: [i32; LANES], w: [[u8; 4]; LANES], a: [i8; 4], offset: i32) -> [i32; LANES] {
    lanes!(|i| {
        let mut sum = acc[i];
        for k in 0..4 {
            sum += (i32::from(w[i][k]) + offset) * i32::from(a[k]);
        }
        sum
    })
}

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type W = [[u8; 4]; LANES];
    type A = [i8; 4];

    const TILE: (usize, usize) = (1, 1);
    const WIDE: (usize, usize) = (1, 1);
    const OFFSET_IN_SUM: bool = false;

    primitives! {
        fn splat(x: f32) -> [f32; LANES] { [x; LANES] }
        fn load(from: *const f32) -> [f32; LANES] { from.cast::<[f32; LANES]>().read_unaligned() }
        fn store(to: *mut f32, x: [f32; LANES]) { to.cast::<[f32; LANES]>().write_unaligned(x) }
        fn load_f16(from: *const u16) -> [f32; LANES] {
            let bits = from.cast::<[u16; LANES]>().read_unaligned();
            lanes!(|i| half::f16_to_f32(bits[i]))
        }
        fn load_bf16(from: *const u16) -> [f32; LANES] {
            let bits = from.cast::<[u16; LANES]>().read_unaligned();
            lanes!(|i| half::bf16_to_f32(bits[i]))
        }
        fn load_u8(from: *const u8) -> [f32; LANES] {
            let bytes = from.cast::<[u8; LANES]>().read_unaligned();
            lanes!(|i| f32::from(bytes[i]))
        }
        fn load_i8(from: *const i8) -> [f32; LANES] {
            let bytes = from.cast::<[i8; LANES]>().read_unaligned();
            lanes!(|i| f32::from(bytes[i]))
        }
        fn add(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { lanes!(|i| a[i] + b[i]) }
        fn sub(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { lanes!(|i| a[i] - b[i]) }
        fn mul(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { lanes!(|i| a[i] * b[i]) }
        fn div(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { lanes!(|i| a[i] / b[i]) }
        fn max(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { lanes!(|i| a[i].max(b[i])) }
        fn min(a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] { lanes!(|i| a[i].min(b[i])) }
        fn abs(x: [f32; LANES]) -> [f32; LANES] { lanes!(|i| x[i].abs()) }
        fn mul_add(a: [f32; LANES], b: [f32; LANES], c: [f32; LANES]) -> [f32; LANES] {
            lanes!(|i| a[i].mul_add(b[i], c[i]))
        }
        fn round(x: [f32; LANES]) -> [f32; LANES] { lanes!(|i| x[i].round_ties_even()) }
        fn scale2(x: [f32; LANES], n: [f32; LANES]) -> [f32; LANES] {
            lanes!(|i| f32::from_bits(x[i].to_bits().wrapping_add((n[i] as i32 as u32) << 23)))
        }
        fn first(x: [f32; LANES], count: usize, fill: f32) -> [f32; LANES] {
            lanes!(|i| if i < count { x[i] } else { fill })
        }
        fn reduce_max(x: [f32; LANES]) -> f32 {
            let mut max = x[0];
            for lane in x {
                max = max.max(lane);
            }
            max
        }
        fn reduce_add(x: [f32; LANES]) -> f32 {
            let mut x = x;
            for half in [8, 4, 2, 1] {
                for i in 0..half {
                    x[i] += x[i + half];
                }
            }
            x[0]
        }
        fn maxima(x: [[f32; LANES]; 4]) -> [f32; 4] {
            let mut maxima = [0.0; 4];
            for i in 0..4 {
                maxima[i] = Self::reduce_max(x[i]);
            }
            maxima
        }
        fn whole_sums(x: [[f32; LANES]; 4]) -> [i32; 4] {
            x.map(|x| {
                let sum = x.iter().sum::<f32>();
                if sum.is_finite() { sum as i32 } else { NOT_FINITE }
            })
        }
        fn store_i8(to: *mut i8, x: [f32; LANES]) {
            let bytes: [i8; LANES] = lanes!(|i| x[i].round_ties_even() as i8);
            to.cast::<[i8; LANES]>().write_unaligned(bytes);
        }
        fn store_i16(to: *mut i16, x: [f32; LANES]) {
            let whole: [i16; LANES] = lanes!(|i| x[i].round_ties_even() as i16);
            to.cast::<[i16; LANES]>().write_unaligned(whole);
        }

        fn splat_i32(x: i32) -> [i32; LANES] { [x; LANES] }
        fn to_f32(x: [i32; LANES]) -> [f32; LANES] { lanes!(|i| x[i] as f32) }
        fn load_weights(from: *const u8) -> [[u8; 4]; LANES] {
            from.cast::<[[u8; 4]; LANES]>().read_unaligned()
        }
        fn low(w: [[u8; 4]; LANES]) -> [[u8; 4]; LANES] { lanes!(|i| w[i].map(|x| x & 15)) }
        fn high(w: [[u8; 4]; LANES]) -> [[u8; 4]; LANES] { lanes!(|i| w[i].map(|x| x >> 4)) }
        fn quad(from: *const i8) -> [i8; 4] { from.cast::<[i8; 4]>().read_unaligned() }
        fn dot(acc: [i32; LANES], w: [[u8; 4]; LANES], a: [i8; 4]) -> [i32; LANES] {
            dot_with(acc, w, a, 0)
        }
        fn dot_signed(acc: [i32; LANES], w: [[u8; 4]; LANES], a: [i8; 4]) -> [i32; LANES] {
            dot_with(acc, w, a, -128)
        }
        fn dot_pairs(acc: [i32; LANES], w: [[u8; 4]; LANES], a: [i8; 4]) -> [i32; LANES] {
            let pair = |[a, b, c, d]: [u8; 4]| {
                [[a, b], [c, d]].map(|bytes| i32::from(i16::from_ne_bytes(bytes)))
            };
            let a = pair(a.map(i8::cast_unsigned));
            lanes!(|i| {
                let w = pair(w[i]);
                acc[i] + w[0] * a[0] + w[1] * a[1]
            })
        }
        fn prefetch(_at: *const u8) {}
        fn prefetch_far(_at: *const u8) {}
    }
}

/// Lets tests run the paired products on every processor.
#[cfg(test)]
impl Pairing for Scalar {
    primitives! {
        fn dot_paired(
            acc: [i32; LANES],
            low: [[u8; 4]; LANES],
            high: [[u8; 4]; LANES],
            a_low: [i8; 4],
            a_high: [i8; 4]
        ) -> [i32; LANES] {
            lanes!(|i| {
                let mut sum = acc[i];
                for k in 0..4 {
                    let first = low[i][k].wrapping_add_signed(a_high[k]);
                    let second = high[i][k].wrapping_add_signed(a_low[k]).cast_signed();
                    sum += i32::from(first) * i32::from(second);
                }
                sum
            })
        }
        fn add_i32(a: [i32; LANES], b: [i32; LANES]) -> [i32; LANES] { lanes!(|i| a[i] + b[i]) }
        fn load_i32(from: *const i32) -> [i32; LANES] {
            from.cast::<[i32; LANES]>().read_unaligned()
        }
        fn store_i32(to: *mut i32, x: [i32; LANES]) {
            to.cast::<[i32; LANES]>().write_unaligned(x)
        }
    }
}
