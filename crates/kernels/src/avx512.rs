//! The primitives on AVX-512 with VNNI (Intel from Ice Lake, AMD from Zen 4): one register per vector.

use std::arch::x86_64::*;

use super::avx2::Avx2;
use super::simd::{LANES, Simd, primitives};
use super::winograd::Pairing;

/// One 512-bit register for sixteen lanes.
pub(super) enum Avx512 {}

/// Operations on halves of registers.
type Halves = Avx2<true>;

/// The halves of each register.
///
/// # Safety
/// As [`Simd`]'s.
#[inline(always)]
unsafe fn halves(x: [__m512; 4]) -> [[__m256; 2]; 4] {
    // SAFETY: as this function's.
    unsafe {
        let mut halves = [[_mm256_setzero_ps(); 2]; 4];
        for i in 0..4 {
            halves[i] = [
                _mm512_castps512_ps256(x[i]),
                _mm512_extractf32x8_ps::<1>(x[i]),
            ];
        }
        halves
    }
}

impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type W = __m512i;
    type A = __m512i;

    // 12 integer and 12 float accumulators leave 8 of the 32 registers for weights and scales.
    const TILE: (usize, usize) = (6, 2);
    const WIDE: (usize, usize) = (6, 4);
    const OFFSET_IN_SUM: bool = true;

    primitives! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn load(from: *const f32) -> __m512 { _mm512_loadu_ps(from) }
        fn store(to: *mut f32, x: __m512) { _mm512_storeu_ps(to, x) }
        fn load_f16(from: *const u16) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
        fn load_bf16(from: *const u16) -> __m512 {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        }
        fn load_u8(from: *const u8) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))
        }
        fn load_i8(from: *const i8) -> __m512 {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())))
        }
        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn max(a: __m512, b: __m512) -> __m512 { _mm512_max_ps(a, b) }
        fn min(a: __m512, b: __m512) -> __m512 { _mm512_min_ps(a, b) }
        fn abs(x: __m512) -> __m512 { _mm512_abs_ps(x) }
        fn mul_add(a: __m512, b: __m512, c: __m512) -> __m512 { _mm512_fmadd_ps(a, b, c) }
        fn round(x: __m512) -> __m512 {
            _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
        }
        fn scale2(x: __m512, n: __m512) -> __m512 {
            let exponent = _mm512_slli_epi32::<23>(_mm512_cvtps_epi32(n));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x), exponent))
        }
        fn first(x: __m512, count: usize, fill: f32) -> __m512 {
            let mask = ((1u32 << count.min(LANES)) - 1) as u16;
            _mm512_mask_mov_ps(_mm512_set1_ps(fill), mask, x)
        }
        fn reduce_max(x: __m512) -> f32 { _mm512_reduce_max_ps(x) }
        fn reduce_add(x: __m512) -> f32 {
            let halves = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x));
            let x = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
        fn maxima(x: [__m512; 4]) -> [f32; 4] { Halves::maxima(halves(x)) }
        fn whole_sums(x: [__m512; 4]) -> [i32; 4] { Halves::whole_sums(halves(x)) }
        fn store_i8(to: *mut i8, x: __m512) {
            _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
        }
        fn store_i16(to: *mut i16, x: __m512) {
            let whole = _mm512_cvtepi32_epi16(_mm512_cvtps_epi32(x));
            _mm256_storeu_si256(to.cast(), whole);
        }

        fn splat_i32(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn to_f32(x: __m512i) -> __m512 { _mm512_cvtepi32_ps(x) }
        fn load_weights(from: *const u8) -> __m512i { _mm512_loadu_si512(from.cast()) }
        fn low(w: __m512i) -> __m512i { _mm512_and_si512(w, _mm512_set1_epi8(0x0f)) }
        fn high(w: __m512i) -> __m512i {
            _mm512_and_si512(_mm512_srli_epi16::<4>(w), _mm512_set1_epi8(0x0f))
        }
        fn quad(from: *const i8) -> __m512i {
            _mm512_set1_epi32(from.cast::<i32>().read_unaligned())
        }
        fn dot(acc: __m512i, w: __m512i, a: __m512i) -> __m512i { _mm512_dpbusd_epi32(acc, w, a) }
        fn dot_signed(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(acc, w, a)
        }
        fn dot_pairs(acc: __m512i, w: __m512i, a: __m512i) -> __m512i {
            _mm512_dpwssd_epi32(acc, w, a)
        }
        fn prefetch(at: *const u8) { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        fn prefetch_far(at: *const u8) { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}

impl Pairing for Avx512 {
    primitives! {
        fn dot_paired(acc: __m512i, low: __m512i, high: __m512i, a_low: __m512i, a_high: __m512i) -> __m512i {
            _mm512_dpbusd_epi32(acc, _mm512_add_epi8(low, a_high), _mm512_add_epi8(high, a_low))
        }
        fn add_i32(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn load_i32(from: *const i32) -> __m512i { _mm512_loadu_si512(from.cast()) }
        fn store_i32(to: *mut i32, x: __m512i) { _mm512_storeu_si512(to.cast(), x) }
    }
}
