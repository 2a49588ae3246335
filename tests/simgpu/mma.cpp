// `mma.sync` on a CPU: the fragments' layout is that of the PTX ISA, "Matrix Fragments for mma.m16n8k32" and
// "mma.m16n8k16 with floating point type". Lane l is in group l / 4 and is number l % 4 of it.
//
// | fragment | register | rows or columns | k (bytes) | k (halves) |
// |---|---|---|---|---|
// | A, 16 rows | i | group + 8 · (i & 1) | 4 · number + 16 · (i >> 1) … + 3 | 2 · number + 8 · (i >> 1) … + 1 |
// | B, 8 columns | i | group | 4 · number + 16 · i … + 3 | 2 · number + 8 · i … + 1 |
// | D, 16 × 8 | i | row group + 8 · (i >> 1), column 2 · number + (i & 1) | | |
#include "mma.h"

namespace simt {
namespace {

// `A` and `B` as 32-bit words: 8 words a row, each of 4 bytes or 2 halves.
struct Words {
    unsigned a[16][8], b[8][8];
};

Words gather_words(const unsigned *const a[32], const unsigned *const b[32]) {
    Words words;
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, number = lane % 4;
        for (int i = 0; i < 4; i++) words.a[group + 8 * (i & 1)][number + 4 * (i >> 1)] = a[lane][i];
        for (int i = 0; i < 2; i++) words.b[group][number + 4 * i] = b[lane][i];
    }
    return words;
}

// One number for each of the eight columns. The compiler finds the registers for it.
typedef float Columns __attribute__((vector_size(32)));

// In floats, since every machine multiplies vectors of them. They are exact: no sum reaches 32 · 255² < 2²⁴.
template <class A, class B>
void multiply_bytes(const Words &words, float (&product)[16][8]) {
    A a[16 * 32];
    B b[8][32];
    std::memcpy(a, words.a, sizeof a);
    std::memcpy(b, words.b, sizeof b);
    float rows[16 * 32];
    for (int i = 0; i < 16 * 32; i++) rows[i] = a[i];
    Columns columns[32];
    for (int k = 0; k < 32; k++) {
        for (int column = 0; column < 8; column++) columns[k][column] = b[column][k];
    }
    // Four rows at a time, so that their sums do not wait for each other.
    for (int row = 0; row < 16; row += 4) {
        const float *at = rows + row * 32;
        Columns sums[4] = {};
        for (int k = 0; k < 32; k++) {
            for (int i = 0; i < 4; i++) sums[i] += at[i * 32 + k] * columns[k];
        }
        std::memcpy(product[row], sums, sizeof sums);
    }
}

template <float (*CONVERT)(unsigned short)>
void multiply_halves(const Words &words, double (&product)[16][8]) {
    double a[16][16], b[8][16];
    const auto widen_row = [](const unsigned(&row)[8], double(&values)[16]) {
        for (int k = 0; k < 16; k++) values[k] = CONVERT(static_cast<unsigned short>(row[k / 2] >> 16 * (k & 1)));
    };
    for (int row = 0; row < 16; row++) widen_row(words.a[row], a[row]);
    for (int column = 0; column < 8; column++) widen_row(words.b[column], b[column]);
    for (int row = 0; row < 16; row++) {
        for (int column = 0; column < 8; column++) {
            double sum = 0;
            for (int k = 0; k < 16; k++) sum += a[row][k] * b[column][k];
            product[row][column] = sum;
        }
    }
}

// Adds each lane's part of the product to its registers.
template <class Sum, class Add>
void scatter(const Sum (&product)[16][8], void *const d[32], Add add) {
    for (int lane = 0; lane < 32; lane++) {
        const int group = lane / 4, number = lane % 4;
        for (int i = 0; i < 4; i++) add(d[lane], i, product[group + 8 * (i >> 1)][2 * number + (i & 1)]);
    }
}

}  // namespace

void multiply_warp(Product kind, void *const d[32], const unsigned *const a[32], const unsigned *const b[32]) {
    const Words words = gather_words(a, b);
    if (kind == F16 || kind == BF16) {
        // The order and the rounding inside of a tensor core are not specified. Here products and their sum are
        // double, and the result is rounded once.
        double product[16][8];
        if (kind == F16) multiply_halves<half_to_f32>(words, product);
        if (kind == BF16) multiply_halves<bf16_to_f32>(words, product);
        scatter(product, d, [](void *out, int i, double sum) {
            float *floats = static_cast<float *>(out);
            floats[i] = float(floats[i] + sum);
        });
        return;
    }
    float product[16][8];
    if (kind == U8S8) multiply_bytes<u8, i8>(words, product);
    if (kind == S8S8) multiply_bytes<i8, i8>(words, product);
    if (kind == S8U8) multiply_bytes<i8, u8>(words, product);
    if (kind == U8U8) multiply_bytes<u8, u8>(words, product);
    scatter(product, d, [](void *out, int i, float sum) {
        unsigned *integers = static_cast<unsigned *>(out);
        integers[i] += unsigned(int(sum));  // wraps around, as on a GPU
    });
}

}  // namespace simt
