//! The primitives on 64-bit ARM: four registers per vector. Integer products take one instruction with
//! the dot product extension (ARMv8.4, and most cores before it), five without.
//!
//! Tested under `qemu-aarch64` (bits, not speed), never on hardware. `dot_pairs` and `store_i16`, which
//! were added later, have only been compiled.

use std::arch::aarch64::*;
use std::arch::asm;

use super::simd::{LANES, NOT_FINITE, Simd, primitives};

/// Lanes 0..4, 4..8, 8..12 and 12..16. `DOT`: with the dot product extension.
pub(super) struct Neon<const DOT: bool>;

/// Applies an expression to the four quarters.
macro_rules! quarters {
    (|$i:ident| $value:expr) => {
        [
            {
                let $i = 0;
                $value
            },
            {
                let $i = 1;
                $value
            },
            {
                let $i = 2;
                $value
            },
            {
                let $i = 3;
                $value
            },
        ]
    };
}

/// `acc + Σ w·a` over each quad.
///
/// # Safety
/// With `DOT`, the processor has the dot product extension.
#[inline(always)]
unsafe fn dot_quads<const DOT: bool>(acc: int32x4_t, w: int8x16_t, a: int8x16_t) -> int32x4_t {
    // SAFETY: the processor has the extension if `DOT`, as the caller guarantees.
    unsafe {
        if DOT {
            // The intrinsic is not stable yet.
            let mut acc = acc;
            asm!(
                ".arch_extension dotprod",
                "sdot {acc:v}.4s, {w:v}.16b, {a:v}.16b",
                acc = inout(vreg) acc,
                w = in(vreg) w,
                a = in(vreg) a,
                options(pure, nomem, nostack, preserves_flags)
            );
            acc
        } else {
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(w), vget_low_s8(a)));
            let high = vpaddlq_s16(vmull_high_s8(w, a));
            vaddq_s32(acc, vpaddq_s32(low, high))
        }
    }
}

impl<const DOT: bool> Simd for Neon<DOT> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type W = [uint8x16_t; 4];
    type A = int8x16_t;

    // 16 integer accumulators in registers; the float ones are on the stack, touched once per block.
    const TILE: (usize, usize) = (4, 1);
    const WIDE: (usize, usize) = (4, 1);
    const OFFSET_IN_SUM: bool = false;

    primitives! {
        fn splat(x: f32) -> [float32x4_t; 4] { [vdupq_n_f32(x); 4] }
        fn load(from: *const f32) -> [float32x4_t; 4] { quarters!(|i| vld1q_f32(from.add(4 * i))) }
        fn store(to: *mut f32, x: [float32x4_t; 4]) {
            for i in 0..4 {
                vst1q_f32(to.add(4 * i), x[i]);
            }
        }
        fn load_f16(from: *const u16) -> [float32x4_t; 4] {
            quarters!(|i| {
                // As above: the instruction is old, the intrinsic's type is not stable.
                let half = vld1_u16(from.add(4 * i));
                let wide: float32x4_t;
                asm!(
                    "fcvtl {wide:v}.4s, {half:v}.4h",
                    wide = lateout(vreg) wide,
                    half = in(vreg) half,
                    options(pure, nomem, nostack, preserves_flags)
                );
                wide
            })
        }
        fn load_bf16(from: *const u16) -> [float32x4_t; 4] {
            quarters!(|i| {
                vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(from.add(4 * i)))))
            })
        }
        fn load_u8(from: *const u8) -> [float32x4_t; 4] {
            let bytes = vld1q_u8(from);
            let words = [vmovl_u8(vget_low_u8(bytes)), vmovl_high_u8(bytes)];
            quarters!(|i| {
                let words = words[i / 2];
                let half = if i % 2 == 0 { vget_low_u16(words) } else { vget_high_u16(words) };
                vcvtq_f32_u32(vmovl_u16(half))
            })
        }
        fn load_i8(from: *const i8) -> [float32x4_t; 4] {
            let bytes = vld1q_s8(from);
            let words = [vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes)];
            quarters!(|i| {
                let words = words[i / 2];
                let half = if i % 2 == 0 { vget_low_s16(words) } else { vget_high_s16(words) };
                vcvtq_f32_s32(vmovl_s16(half))
            })
        }
        fn add(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| vaddq_f32(a[i], b[i]))
        }
        fn sub(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| vsubq_f32(a[i], b[i]))
        }
        fn mul(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| vmulq_f32(a[i], b[i]))
        }
        fn div(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| vdivq_f32(a[i], b[i]))
        }
        fn max(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| vmaxq_f32(a[i], b[i]))
        }
        fn min(a: [float32x4_t; 4], b: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| vminq_f32(a[i], b[i]))
        }
        fn abs(x: [float32x4_t; 4]) -> [float32x4_t; 4] { quarters!(|i| vabsq_f32(x[i])) }
        fn mul_add(a: [float32x4_t; 4], b: [float32x4_t; 4], c: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| vfmaq_f32(c[i], a[i], b[i]))
        }
        fn round(x: [float32x4_t; 4]) -> [float32x4_t; 4] { quarters!(|i| vrndnq_f32(x[i])) }
        fn scale2(x: [float32x4_t; 4], n: [float32x4_t; 4]) -> [float32x4_t; 4] {
            quarters!(|i| {
                let exponent = vshlq_n_s32::<23>(vcvtq_s32_f32(n[i]));
                vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(x[i]), exponent))
            })
        }
        fn first(x: [float32x4_t; 4], count: usize, fill: f32) -> [float32x4_t; 4] {
            let lanes = vld1q_u32([0, 1, 2, 3].as_ptr());
            let count = count.min(LANES) as u32;
            quarters!(|i| {
                let inside = vcltq_u32(lanes, vdupq_n_u32(count.saturating_sub(4 * i as u32)));
                vbslq_f32(inside, x[i], vdupq_n_f32(fill))
            })
        }
        fn reduce_max(x: [float32x4_t; 4]) -> f32 {
            vmaxvq_f32(vmaxq_f32(vmaxq_f32(x[0], x[1]), vmaxq_f32(x[2], x[3])))
        }
        fn reduce_add(x: [float32x4_t; 4]) -> f32 {
            let x = vaddq_f32(vaddq_f32(x[0], x[2]), vaddq_f32(x[1], x[3]));
            vaddv_f32(vadd_f32(vget_low_f32(x), vget_high_f32(x)))
        }
        fn maxima(x: [[float32x4_t; 4]; 4]) -> [f32; 4] {
            let mut maxima = [0.0; 4];
            for i in 0..4 {
                let [a, b, c, d] = x[i];
                maxima[i] = vmaxvq_f32(vmaxq_f32(vmaxq_f32(a, b), vmaxq_f32(c, d)));
            }
            maxima
        }
        fn whole_sums(x: [[float32x4_t; 4]; 4]) -> [i32; 4] {
            let mut sums = [0; 4];
            for i in 0..4 {
                let [a, b, c, d] = x[i];
                let sum = vaddvq_f32(vaddq_f32(vaddq_f32(a, b), vaddq_f32(c, d)));
                sums[i] = if sum.is_finite() { sum as i32 } else { NOT_FINITE };
            }
            sums
        }
        fn store_i8(to: *mut i8, x: [float32x4_t; 4]) {
            let whole = quarters!(|i| vcvtnq_s32_f32(x[i]));
            let low = vcombine_s16(vmovn_s32(whole[0]), vmovn_s32(whole[1]));
            let high = vcombine_s16(vmovn_s32(whole[2]), vmovn_s32(whole[3]));
            vst1q_s8(to, vcombine_s8(vmovn_s16(low), vmovn_s16(high)));
        }
        fn store_i16(to: *mut i16, x: [float32x4_t; 4]) {
            for i in 0..4 {
                vst1_s16(to.add(4 * i), vmovn_s32(vcvtnq_s32_f32(x[i])));
            }
        }

        fn splat_i32(x: i32) -> [int32x4_t; 4] { [vdupq_n_s32(x); 4] }
        fn to_f32(x: [int32x4_t; 4]) -> [float32x4_t; 4] { quarters!(|i| vcvtq_f32_s32(x[i])) }
        fn load_weights(from: *const u8) -> [uint8x16_t; 4] {
            quarters!(|i| vld1q_u8(from.add(16 * i)))
        }
        fn low(w: [uint8x16_t; 4]) -> [uint8x16_t; 4] {
            quarters!(|i| vandq_u8(w[i], vdupq_n_u8(0x0f)))
        }
        fn high(w: [uint8x16_t; 4]) -> [uint8x16_t; 4] { quarters!(|i| vshrq_n_u8::<4>(w[i])) }
        fn quad(from: *const i8) -> int8x16_t {
            vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned()))
        }
        fn dot(acc: [int32x4_t; 4], w: [uint8x16_t; 4], a: int8x16_t) -> [int32x4_t; 4] {
            quarters!(|i| dot_quads::<DOT>(acc[i], vreinterpretq_s8_u8(w[i]), a))
        }
        fn dot_signed(acc: [int32x4_t; 4], w: [uint8x16_t; 4], a: int8x16_t) -> [int32x4_t; 4] {
            quarters!(|i| {
                let signed = vreinterpretq_s8_u8(veorq_u8(w[i], vdupq_n_u8(0x80)));
                dot_quads::<DOT>(acc[i], signed, a)
            })
        }
        fn dot_pairs(acc: [int32x4_t; 4], w: [uint8x16_t; 4], a: int8x16_t) -> [int32x4_t; 4] {
            quarters!(|i| {
                let (w, a) = (vreinterpretq_s16_u8(w[i]), vreinterpretq_s16_s8(a));
                let low = vmull_s16(vget_low_s16(w), vget_low_s16(a));
                vaddq_s32(acc[i], vpaddq_s32(low, vmull_high_s16(w, a)))
            })
        }
        fn prefetch(at: *const u8) {
            asm!(
                "prfm pldl1keep, [{at}]",
                at = in(reg) at,
                options(readonly, nostack, preserves_flags)
            );
        }
        fn prefetch_far(at: *const u8) {
            asm!(
                "prfm pldl2keep, [{at}]",
                at = in(reg) at,
                options(readonly, nostack, preserves_flags)
            );
        }
    }
}
