// Matrix products of a warp, on the registers of its 32 lanes.
#pragma once
#include "simt.h"

namespace simt {

// D += A · B for all lanes. `d[lane]` holds 4 registers (int or float), `a[lane]` 4, `b[lane]` 2.
void multiply_warp(Product kind, void *const d[32], const unsigned *const a[32], const unsigned *const b[32]);

}  // namespace simt
