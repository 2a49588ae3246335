// The host half of the kernels' language: what a kernel may use, as C++ that runs on a CPU.
//
// `src/engine/cuda/kernels/gpu.h` includes this file where no CUDA compiler reads it. The CUDA half of that
// header declares the same names. Each thread of a block is a fiber (`fiber.h`), and `simt.cpp` runs the blocks.
//
// The operations of a warp need all of its 32 lanes, at the same line of the source. Where a lane has ended, or
// waits elsewhere, the launch fails with a report. They carry their line as a default argument, since a compiler
// may copy a call into both branches of a condition, which makes return addresses differ.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

typedef std::uint8_t u8;
typedef std::int8_t i8;
typedef std::uint16_t u16;
typedef std::int16_t i16;
typedef std::uint32_t u32;
typedef std::int32_t i32;
typedef unsigned long long u64;
typedef long long i64;

// With checks, a kernel's parameters are read without one, and the kernel itself keeps its own.
#ifdef SIMGPU_CHECKS
#define SIMT_UNCHECKED __attribute__((no_sanitize("thread")))
#define SIMT_CHECKED __attribute__((noinline))
#else
#define SIMT_UNCHECKED
#define SIMT_CHECKED
#endif

namespace simt {

struct Dim {
    unsigned x, y, z;
};

// Where the running thread is. One per host thread; every switch of fibers writes `thread`.
struct Here {
    Dim thread, block, block_dim, grid_dim;
};
// Initial-exec: one load, no call. Fibers never move between host threads.
extern __thread Here here __attribute__((tls_model("initial-exec"), visibility("hidden")));

// A kernel that the library can launch. `call` unpacks the driver's `void **kernelParams`.
struct Kernel {
    const char *name;
    void (*call)(void *const *params);
    const unsigned *sizes;  // bytes of each parameter
    unsigned count;
    Kernel *next;

    Kernel(const char *name, void (*call)(void *const *), const unsigned *sizes, unsigned count);
};

template <auto F, class T = decltype(F)>
struct Entry;
template <auto F, class... P>
struct Entry<F, void (*)(P...)> {
    static constexpr unsigned count = sizeof...(P);
    static constexpr unsigned sizes[sizeof...(P) + 1] = {unsigned(sizeof(P))..., 0};
    SIMT_UNCHECKED static void call(void *const *params) {
        unpack(params, std::make_index_sequence<sizeof...(P)>());
    }

  private:
    template <std::size_t... I>
    SIMT_UNCHECKED static void unpack([[maybe_unused]] void *const *params, std::index_sequence<I...>) {
        F(*static_cast<P *>(params[I])...);
    }
};

// A shared array of a kernel. Its address is its identity: every thread of a block gets the same room for it.
struct SharedArray {
    const char *name;
    std::size_t bytes;
};
void *shared(const SharedArray *array);

enum Product { U8S8, S8S8, S8U8, U8U8, F16, BF16 };

void wait_block(int line);
void wait_warp(int line);
// Hands over `value` and returns what the 32 lanes handed over, in the lanes' order. The array is valid until
// this lane's next operation but one.
const u64 *gather(u64 value, int line);
unsigned vote(bool value, int line);
// d: 4 registers a lane, a: 4, b: 2, laid out as the PTX ISA says for m16n8k32 (bytes) and m16n8k16 (halves).
void multiply(Product kind, void *d, const unsigned *a, const unsigned *b, int line);

template <class T>
static inline u64 to_bits(T value) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8, "shuffles take 4 or 8 bytes");
    u64 bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T>
static inline T from_bits(u64 bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

}  // namespace simt

#define threadIdx simt::here.thread
#define blockIdx simt::here.block
#define blockDim simt::here.block_dim
#define gridDim simt::here.grid_dim

#define DEVICE static inline

// Two steps, so that a name that is itself a macro is expanded.
#define KERNEL(...) SIMT_KERNEL(__VA_ARGS__)
#define SIMT_KERNEL(name, ...)                                                                         \
    SIMT_CHECKED static void name(__VA_ARGS__);                                                        \
    static simt::Kernel simt_kernel_##name(#name, simt::Entry<&name>::call, simt::Entry<&name>::sizes, \
                                           simt::Entry<&name>::count);                                 \
    static void name(__VA_ARGS__)

// A pointer to N elements that the block shares, filled with 0xA5 when the block starts.
#define SHARED(T, name, N)                                                         \
    static constexpr simt::SharedArray simt_shared_##name{#name, sizeof(T) * (N)}; \
    T *const name = static_cast<T *>(simt::shared(&simt_shared_##name))

// Vectors of 8 and 16 bytes. With checks, a copy is one access of the whole vector, as on a GPU: the compiler
// would otherwise read the parts that it needs, one by one.
#ifdef SIMGPU_CHECKS
namespace simt {
void copy_vector(void *to, const void *from, std::size_t bytes);
}
#define SIMT_VECTOR_COPY(name)                                                 \
    name() = default;                                                          \
    name(const name &other) { simt::copy_vector(this, &other, sizeof *this); } \
    name &operator=(const name &other) {                                       \
        simt::copy_vector(this, &other, sizeof *this);                         \
        return *this;                                                          \
    }
#else
#define SIMT_VECTOR_COPY(name) name() = default;
#endif
#define SIMT_VECTOR4(name, T)                                \
    struct alignas(16) name {                                \
        T x, y, z, w;                                        \
        SIMT_VECTOR_COPY(name)                               \
        name(T x, T y, T z, T w) : x(x), y(y), z(z), w(w) {} \
    }
SIMT_VECTOR4(int4, int);
SIMT_VECTOR4(uint4, unsigned);
SIMT_VECTOR4(float4, float);
struct alignas(8) uint2 {
    unsigned x, y;
    SIMT_VECTOR_COPY(uint2)
    uint2(unsigned x, unsigned y) : x(x), y(y) {}
};

DEVICE void sync_block(int line = __builtin_LINE()) { simt::wait_block(line); }
DEVICE void sync_warp(int line = __builtin_LINE()) { simt::wait_warp(line); }

template <class T>
static inline T shuffle_xor(T value, int mask, int line = __builtin_LINE()) {
    const u64 *all = simt::gather(simt::to_bits(value), line);
    return simt::from_bits<T>(all[(threadIdx.x ^ unsigned(mask)) & 31]);
}
template <class T>
static inline T shuffle(T value, int lane, int line = __builtin_LINE()) {
    const u64 *all = simt::gather(simt::to_bits(value), line);
    return simt::from_bits<T>(all[unsigned(lane) & 31]);
}
// A lane whose source would be beyond the warp gets its own value, as on a GPU.
template <class T>
static inline T shuffle_down(T value, unsigned delta, int line = __builtin_LINE()) {
    const u64 *all = simt::gather(simt::to_bits(value), line);
    const unsigned lane = threadIdx.x & 31;
    return simt::from_bits<T>(all[lane + delta < 32 ? lane + delta : lane]);
}
DEVICE unsigned ballot(bool value, int line = __builtin_LINE()) { return simt::vote(value, line); }
DEVICE bool any(bool value, int line = __builtin_LINE()) { return simt::vote(value, line) != 0; }

DEVICE void mma_u8s8(int d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    simt::multiply(simt::U8S8, d, a, b, line);
}
DEVICE void mma_s8s8(int d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    simt::multiply(simt::S8S8, d, a, b, line);
}
DEVICE void mma_s8u8(int d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    simt::multiply(simt::S8U8, d, a, b, line);
}
DEVICE void mma_u8u8(int d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    simt::multiply(simt::U8U8, d, a, b, line);
}
DEVICE void mma_f16(float d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    simt::multiply(simt::F16, d, a, b, line);
}
DEVICE void mma_bf16(float d[4], const unsigned a[4], const unsigned b[2], int line = __builtin_LINE()) {
    simt::multiply(simt::BF16, d, a, b, line);
}

DEVICE int dot4_us(unsigned w, int a, int c) {
    for (int i = 0; i < 32; i += 8) c += int(u8(w >> i)) * int(i8(unsigned(a) >> i));
    return c;
}
DEVICE int dot4_ss(int w, int a, int c) {
    for (int i = 0; i < 32; i += 8) c += int(i8(unsigned(w) >> i)) * int(i8(unsigned(a) >> i));
    return c;
}

DEVICE unsigned f32_bits(float value) { return unsigned(simt::to_bits(value)); }
DEVICE float bits_f32(unsigned bits) { return simt::from_bits<float>(bits); }
DEVICE float fma_(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float mul_(float a, float b) { return a * b; }
DEVICE float add_(float a, float b) { return a + b; }
DEVICE float sub_(float a, float b) { return a - b; }
DEVICE float div_(float a, float b) { return a / b; }
DEVICE float sqrt_(float a) { return __builtin_sqrtf(a); }
DEVICE float rint_(float a) { return __builtin_rintf(a); }
DEVICE float abs_(float a) { return __builtin_fabsf(a); }
// Of two zeros, the greater is +0 (PTX ISA, `max` and `min`).
DEVICE float max_(float a, float b) { return a > b ? a : a < b ? b : bits_f32(f32_bits(a) & f32_bits(b)); }
DEVICE float min_(float a, float b) { return a < b ? a : a > b ? b : bits_f32(f32_bits(a) | f32_bits(b)); }

DEVICE float int_to_f32(int value) { return float(value); }
// Saturates, and turns NaN into 0 (PTX ISA, `cvt.rzi.s32.f32`).
DEVICE int f32_to_int(float value) {
    if (value >= 2147483648.0f) return 2147483647;
    if (value < -2147483648.0f) return -2147483647 - 1;
    return value == value ? int(value) : 0;
}
DEVICE float bf16_to_f32(unsigned short bits) { return bits_f32(unsigned(bits) << 16); }
DEVICE float half_to_f32(unsigned short bits) {
    const unsigned sign = unsigned(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 1023;
    if (exponent == 0) return bits_f32(sign | f32_bits(float(fraction) * 0x1p-24f));
    return bits_f32(sign | (exponent == 31 ? 255u : exponent + 112u) << 23 | fraction << 13);
}
DEVICE u64 mulhi_u64(u64 a, u64 b) { return u64((static_cast<unsigned __int128>(a) * b) >> 64); }

template <class T>
__attribute__((always_inline)) static inline T ld_stream(const T *p) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16, "ld_stream takes 4, 8 or 16 bytes");
    return *p;
}
