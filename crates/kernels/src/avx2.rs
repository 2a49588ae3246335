//! The primitives on AVX2 with FMA and F16C: two registers per vector. Integer products take one
//! instruction with AVX-VNNI, three without.

use std::arch::x86_64::*;

use super::simd::{LANES, Simd, primitives};

/// Lanes 0..8 and 8..16. `VNNI`: with AVX-VNNI.
pub(super) struct Avx2<const VNNI: bool>;

/// Applies an expression to both halves.
macro_rules! both {
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
        ]
    };
}

/// `FIRST[16 - n..]` starts with `n` lanes of ones.
static FIRST: [i32; 2 * LANES] = {
    let mut lanes = [0; 2 * LANES];
    let mut lane = 0;
    while lane < LANES {
        lanes[lane] = -1;
        lane += 1;
    }
    lanes
};

/// Reduces the eight lanes of each of four registers. A macro, because a closure would not be compiled
/// with the target features.
macro_rules! four_at_once {
    ($wide:ident, $narrow:ident, $x:expr) => {{
        let x = $x;
        // Adjacent lanes, then adjacent pairs: each half of the register then has one lane per input.
        let ab = $wide(
            _mm256_unpacklo_ps(x[0], x[1]),
            _mm256_unpackhi_ps(x[0], x[1]),
        );
        let cd = $wide(
            _mm256_unpacklo_ps(x[2], x[3]),
            _mm256_unpackhi_ps(x[2], x[3]),
        );
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let low = _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd));
        let high = _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd));
        let all = $wide(low, high);
        $narrow(_mm256_castps256_ps128(all), _mm256_extractf128_ps::<1>(all))
    }};
}

impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = [__m256; 2];
    type I = [__m256i; 2];
    type W = [__m256i; 2];
    type A = __m256i;

    // 8 integer accumulators in registers; the float ones are on the stack, touched once per block.
    const TILE: (usize, usize) = (4, 1);
    const WIDE: (usize, usize) = (4, 1);
    const OFFSET_IN_SUM: bool = VNNI;

    primitives! {
        fn splat(x: f32) -> [__m256; 2] { [_mm256_set1_ps(x); 2] }
        fn load(from: *const f32) -> [__m256; 2] { both!(|i| _mm256_loadu_ps(from.add(8 * i))) }
        fn store(to: *mut f32, x: [__m256; 2]) {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
        fn load_f16(from: *const u16) -> [__m256; 2] {
            both!(|i| _mm256_cvtph_ps(_mm_loadu_si128(from.add(8 * i).cast())))
        }
        fn load_bf16(from: *const u16) -> [__m256; 2] {
            both!(|i| {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(from.add(8 * i).cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            })
        }
        fn load_u8(from: *const u8) -> [__m256; 2] {
            both!(|i| _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.add(8 * i).cast()))))
        }
        fn load_i8(from: *const i8) -> [__m256; 2] {
            both!(|i| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.add(8 * i).cast()))))
        }
        fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(|i| _mm256_add_ps(a[i], b[i])) }
        fn sub(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(|i| _mm256_sub_ps(a[i], b[i])) }
        fn mul(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(|i| _mm256_mul_ps(a[i], b[i])) }
        fn div(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(|i| _mm256_div_ps(a[i], b[i])) }
        fn max(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(|i| _mm256_max_ps(a[i], b[i])) }
        fn min(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { both!(|i| _mm256_min_ps(a[i], b[i])) }
        fn abs(x: [__m256; 2]) -> [__m256; 2] {
            both!(|i| _mm256_andnot_ps(_mm256_set1_ps(-0.0), x[i]))
        }
        fn mul_add(a: [__m256; 2], b: [__m256; 2], c: [__m256; 2]) -> [__m256; 2] {
            both!(|i| _mm256_fmadd_ps(a[i], b[i], c[i]))
        }
        fn round(x: [__m256; 2]) -> [__m256; 2] {
            both!(|i| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x[i]))
        }
        fn scale2(x: [__m256; 2], n: [__m256; 2]) -> [__m256; 2] {
            both!(|i| {
                let exponent = _mm256_slli_epi32::<23>(_mm256_cvtps_epi32(n[i]));
                _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x[i]), exponent))
            })
        }
        fn first(x: [__m256; 2], count: usize, fill: f32) -> [__m256; 2] {
            let mask = FIRST.as_ptr().add(LANES - count.min(LANES));
            both!(|i| {
                let mask = _mm256_castsi256_ps(_mm256_loadu_si256(mask.add(8 * i).cast()));
                _mm256_blendv_ps(_mm256_set1_ps(fill), x[i], mask)
            })
        }
        fn reduce_max(x: [__m256; 2]) -> f32 {
            let x = _mm256_max_ps(x[0], x[1]);
            let x = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_max_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_max_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
        fn reduce_add(x: [__m256; 2]) -> f32 {
            let x = _mm256_add_ps(x[0], x[1]);
            let x = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let x = _mm_add_ps(x, _mm_movehl_ps(x, x));
            _mm_cvtss_f32(_mm_add_ss(x, _mm_shuffle_ps::<1>(x, x)))
        }
        fn maxima(x: [[__m256; 2]; 4]) -> [f32; 4] {
            let mut halves = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                halves[i] = _mm256_max_ps(x[i][0], x[i][1]);
            }
            let mut maxima = [0.0; 4];
            _mm_storeu_ps(
                maxima.as_mut_ptr(),
                four_at_once!(_mm256_max_ps, _mm_max_ps, halves),
            );
            maxima
        }
        fn whole_sums(x: [[__m256; 2]; 4]) -> [i32; 4] {
            let mut halves = [_mm256_setzero_ps(); 4];
            for i in 0..4 {
                halves[i] = _mm256_add_ps(x[i][0], x[i][1]);
            }
            let mut sums = [0; 4];
            // The instruction itself returns `NOT_FINITE` for non-finite input.
            let whole = _mm_cvtps_epi32(four_at_once!(_mm256_add_ps, _mm_add_ps, halves));
            _mm_storeu_si128(sums.as_mut_ptr().cast(), whole);
            sums
        }
        fn store_i8(to: *mut i8, x: [__m256; 2]) {
            let whole = both!(|i| _mm256_cvtps_epi32(x[i]));
            // Packing works within 128-bit halves: the quarters come out as 0, 2, 1, 3.
            let words = _mm256_packs_epi32(whole[0], whole[1]);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            let bytes = _mm_packs_epi16(
                _mm256_castsi256_si128(words),
                _mm256_extracti128_si256::<1>(words),
            );
            _mm_storeu_si128(to.cast(), bytes);
        }
        fn store_i16(to: *mut i16, x: [__m256; 2]) {
            let whole = both!(|i| _mm256_cvtps_epi32(x[i]));
            // As above.
            let words = _mm256_packs_epi32(whole[0], whole[1]);
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(words);
            _mm256_storeu_si256(to.cast(), words);
        }

        fn splat_i32(x: i32) -> [__m256i; 2] { [_mm256_set1_epi32(x); 2] }
        fn to_f32(x: [__m256i; 2]) -> [__m256; 2] { both!(|i| _mm256_cvtepi32_ps(x[i])) }
        fn load_weights(from: *const u8) -> [__m256i; 2] {
            both!(|i| _mm256_loadu_si256(from.add(32 * i).cast()))
        }
        fn low(w: [__m256i; 2]) -> [__m256i; 2] {
            both!(|i| _mm256_and_si256(w[i], _mm256_set1_epi8(0x0f)))
        }
        fn high(w: [__m256i; 2]) -> [__m256i; 2] {
            both!(|i| _mm256_and_si256(_mm256_srli_epi16::<4>(w[i]), _mm256_set1_epi8(0x0f)))
        }
        fn quad(from: *const i8) -> __m256i { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
        fn dot(acc: [__m256i; 2], w: [__m256i; 2], a: __m256i) -> [__m256i; 2] {
            both!(|i| {
                if VNNI {
                    _mm256_dpbusd_avx_epi32(acc[i], w[i], a)
                } else {
                    // Pairs fit 16 bits: 2 · 127 · 127 < 2^15.
                    let pairs = _mm256_maddubs_epi16(w[i], a);
                    _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                }
            })
        }
        fn dot_signed(acc: [__m256i; 2], w: [__m256i; 2], a: __m256i) -> [__m256i; 2] {
            both!(|i| {
                if VNNI {
                    _mm256_dpbusd_avx_epi32(acc[i], w[i], a)
                } else {
                    // |w| · (sign of w · a): pairs fit 16 bits, 2 · 128 · 127 < 2^15.
                    let signed = _mm256_xor_si256(w[i], _mm256_set1_epi8(-128));
                    let a = _mm256_sign_epi8(a, signed);
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(signed), a);
                    _mm256_add_epi32(acc[i], _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
                }
            })
        }
        fn dot_pairs(acc: [__m256i; 2], w: [__m256i; 2], a: __m256i) -> [__m256i; 2] {
            both!(|i| {
                if VNNI {
                    _mm256_dpwssd_avx_epi32(acc[i], w[i], a)
                } else {
                    _mm256_add_epi32(acc[i], _mm256_madd_epi16(w[i], a))
                }
            })
        }
        fn prefetch(at: *const u8) { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        fn prefetch_far(at: *const u8) { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
}
