//! The abstraction over processors: [`Simd`], sixteen lanes and the operations on them. The kernels are
//! written once over it, after memchr's `Vector`; each processor family is a file of primitives.
//!
//! Every primitive is exactly specified (IEEE 754 single operations, exact integers), so a kernel gives
//! the same bits on every processor.

/// Sentinel for non-finite input to a conversion to integers.
pub(super) const NOT_FINITE: i32 = i32::MIN;

/// Lanes of every vector type, and rows of a weight group.
pub(super) const LANES: usize = 16;

/// Defines primitives without repeating the same two lines around each: an always-inlined function, and
/// the safety comment, which is the same for all.
macro_rules! primitives {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? $body:block)*) => {
        $(
            $(#[$doc])*
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller of a `Simd` primitive runs with the processor's features enabled,
                // and its pointers are valid for the lanes that the trait names.
                #[allow(unused_unsafe, reason = "the portable ones have little that is unsafe")]
                unsafe { $body }
            }
        )*
    };
}
pub(super) use primitives;

/// Sixteen lanes of `f32` and `i32`, and sixteen quads of bytes.
///
/// # Safety
/// Every function may be called only inside a function compiled with the processor's features
/// (`#[target_feature]`), on a processor that has them. Pointers must be valid for the lanes read or
/// written: 16 elements unless stated otherwise. No alignment is needed.
pub(super) trait Simd: 'static {
    /// Sixteen `f32`.
    type F: Copy;
    /// Sixteen `i32`.
    type I: Copy;
    /// Sixteen quads of weight bytes: lane `r` holds four columns of row `r`.
    type W: Copy;
    /// One quad of activation bytes, in every lane.
    type A: Copy;

    /// Tokens × groups of a register tile of the integer product. The shape never changes a result.
    const TILE: (usize, usize);
    /// The same for dense rows, and for attention (queries × vectors).
    const WIDE: (usize, usize);
    /// Whether [`Simd::dot_signed`] multiplies the byte as stored (0..=255), so that the accumulator
    /// has to start with the correction for the offset of 128.
    const OFFSET_IN_SUM: bool;

    /// `x` in every lane.
    unsafe fn splat(x: f32) -> Self::F;
    /// Loads 16 `f32`.
    unsafe fn load(from: *const f32) -> Self::F;
    /// Stores 16 `f32`.
    unsafe fn store(to: *mut f32, x: Self::F);
    /// Loads 16 IEEE half-precision numbers.
    unsafe fn load_f16(from: *const u16) -> Self::F;
    /// Loads 16 bfloat16 numbers.
    unsafe fn load_bf16(from: *const u16) -> Self::F;
    /// Loads 16 unsigned bytes as numbers.
    unsafe fn load_u8(from: *const u8) -> Self::F;
    /// Loads 16 signed bytes as numbers.
    unsafe fn load_i8(from: *const i8) -> Self::F;
    /// `a + b`.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`.
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a / b`.
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The larger of `a` and `b` (neither is NaN).
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller of `a` and `b` (neither is NaN).
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    /// `|x|`.
    unsafe fn abs(x: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Rounds to the nearest integer, ties to even.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `x * 2^n`, for integers `n` that keep the result normal.
    unsafe fn scale2(x: Self::F, n: Self::F) -> Self::F;
    /// The first `count` lanes of `x`, and `fill` in the others.
    unsafe fn first(x: Self::F, count: usize, fill: f32) -> Self::F;
    /// The largest lane.
    unsafe fn reduce_max(x: Self::F) -> f32;
    /// The sum of all lanes: lanes 8 apart first, then 4, 2, 1.
    unsafe fn reduce_add(x: Self::F) -> f32;
    /// The largest lane of each vector.
    unsafe fn maxima(x: [Self::F; 4]) -> [f32; 4];
    /// The sum of each vector's lanes, which hold integers. The order does not matter, since no partial
    /// sum reaches 2^24. [`NOT_FINITE`] for a vector with a lane that is not finite.
    unsafe fn whole_sums(x: [Self::F; 4]) -> [i32; 4];
    /// Rounds to the nearest integer (ties to even; |x| ≤ 127) and stores 16 bytes.
    unsafe fn store_i8(to: *mut i8, x: Self::F);
    /// Rounds to the nearest integer (ties to even; |x| ≤ 32767) and stores 16 of them.
    unsafe fn store_i16(to: *mut i16, x: Self::F);

    /// `x` in every lane.
    unsafe fn splat_i32(x: i32) -> Self::I;
    /// Converts to `f32`, ties to even (exact below 2^24).
    unsafe fn to_f32(x: Self::I) -> Self::F;
    /// Loads 64 weight bytes.
    unsafe fn load_weights(from: *const u8) -> Self::W;
    /// The low nibbles.
    unsafe fn low(w: Self::W) -> Self::W;
    /// The high nibbles.
    unsafe fn high(w: Self::W) -> Self::W;
    /// Loads 4 activation bytes into every lane.
    unsafe fn quad(from: *const i8) -> Self::A;
    /// `acc + Σ w·a` over each lane's quad, for weights of 0..=127 and activations of −127..=127.
    unsafe fn dot(acc: Self::I, w: Self::W, a: Self::A) -> Self::I;
    /// `acc + Σ (w − 128)·a`, for weights of 0..=255; with [`Simd::OFFSET_IN_SUM`], `acc + Σ w·a`.
    unsafe fn dot_signed(acc: Self::I, w: Self::W, a: Self::A) -> Self::I;
    /// `acc + Σ w·a` over each lane's pair of 16-bit integers, loaded as bytes by
    /// [`Simd::load_weights`] and [`Simd::quad`].
    unsafe fn dot_pairs(acc: Self::I, w: Self::W, a: Self::A) -> Self::I;
    /// Prefetches the cache line at `at`, which need not be valid, into the nearest cache.
    unsafe fn prefetch(at: *const u8);
    /// Prefetches into the second-level cache, which takes more requests at a time: for scattered data.
    unsafe fn prefetch_far(at: *const u8);

    /// `e^min(x, max)`, for a `max` of at most 88. Within 1.5 units in the last place from −86.6 on;
    /// about 2.4e-38 below that. Range reduction and polynomial of Cephes' `expf`.
    #[inline(always)]
    unsafe fn exp(x: Self::F, max: f32) -> Self::F {
        // SAFETY: as this function's.
        unsafe {
            let x = Self::max(Self::min(x, Self::splat(max)), Self::splat(-86.6));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            // ln 2 in two parts: the first has few enough bits for its product with `n` to be exact.
            let r = Self::mul_add(n, Self::splat(-0.693_359_4), x);
            let r = Self::mul_add(n, Self::splat(2.121_944_4e-4), r);
            let p = Self::splat(1.987_569_1e-4);
            let p = Self::mul_add(p, r, Self::splat(1.398_2e-3));
            let p = Self::mul_add(p, r, Self::splat(8.333_452e-3));
            let p = Self::mul_add(p, r, Self::splat(4.166_579_6e-2));
            let p = Self::mul_add(p, r, Self::splat(1.666_666_5e-1));
            let p = Self::mul_add(p, r, Self::splat(0.5));
            let y = Self::add(Self::mul_add(p, Self::mul(r, r), r), Self::splat(1.0));
            Self::scale2(y, n)
        }
    }
}
