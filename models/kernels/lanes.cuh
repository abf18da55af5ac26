// Warps as values, so that one source is a CUDA kernel and, with STEERDIFF_EMULATED, a C++ program that tests run.
//
// A Lanes<T> is one register of a warp: a T on the device, 32 of them in the emulation. What each lane does alone
// stands in FOR_LANES(l) { ... }; what lanes do together (shuffles, matrix products, loads of fragments) is a function
// below, called by the whole warp outside of FOR_LANES. Nothing else in a kernel knows which of the two it is.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

namespace steerdiff {

// Storage of 16-bit numbers; arithmetic is in float32.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace steerdiff

#ifdef STEERDIFF_EMULATED
#include "emulated.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#define DEVICE __device__ __forceinline__
#define FOR_LANES(l) if (const int l = threadIdx.x % 32; true)

namespace steerdiff {

template <class T>
struct Lanes {
  T value;
  DEVICE T& operator[](int) { return value; }
  DEVICE const T& operator[](int) const { return value; }
};

constexpr unsigned all_lanes = 0xffffffffu;

// This warp's number in its block; and how many there are.
DEVICE int warp_index() { return threadIdx.x / 32; }
DEVICE int warp_count() { return blockDim.x / 32; }

// Wait for the block's, or the warp's, other threads; what they wrote before can be read after.
DEVICE void block_sync() { __syncthreads(); }
DEVICE void warp_sync() { __syncwarp(); }

DEVICE float to_float(float x) { return x; }
DEVICE float to_float(Half x) { return __half2float(__ushort_as_half(x.bits)); }
DEVICE float to_float(BFloat16 x) { return __bfloat162float(__ushort_as_bfloat16(x.bits)); }

// Conversions from float round to the nearest, ties to even.
template <class T>
DEVICE T from_float(float x);
template <>
DEVICE float from_float<float>(float x) {
  return x;
}
template <>
DEVICE Half from_float<Half>(float x) {
  return {__half_as_ushort(__float2half_rn(x))};
}
template <>
DEVICE BFloat16 from_float<BFloat16>(float x) {
  return {__bfloat16_as_ushort(__float2bfloat16_rn(x))};
}

DEVICE float exp2_of(float x) { return exp2f(x); }

// Copy 16 aligned bytes from global to shared memory, to be there after wait_copies and a sync.
DEVICE void copy_async16(void* shared, const void* global) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
}

// Close the group of copies started since the last commit; wait for all groups but the last `pending`.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int pending>
DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

template <class T>
DEVICE Lanes<T> shuffle_xor(Lanes<T> x, int mask) {
  return {__shfl_xor_sync(all_lanes, x.value, mask)};
}

// What lane `from` of each four neighbours holds, for all four of them.
DEVICE Lanes<float> quad_broadcast(Lanes<float> x, int from) { return {__shfl_sync(all_lanes, x.value, from, 4)}; }

// Load four 8 x 8 matrices of 16-bit numbers; lane l gives the address of row l % 8 of matrix l / 8, aligned to 16.
// Then lane l has, in register i, of matrix i, row l / 4, the columns 2 * (l % 4) and the next.
DEVICE void load_matrices(Lanes<uint32_t> (&to)[4], Lanes<const void*> rows) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(rows.value));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0].value), "=r"(to[1].value), "=r"(to[2].value), "=r"(to[3].value)
               : "r"(from)
               : "memory");
}

// The same of the matrices transposed: rows 2 * (l % 4) and the next, of column l / 4.
DEVICE void load_transposed(Lanes<uint32_t> (&to)[4], Lanes<const void*> rows) {
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(rows.value));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0].value), "=r"(to[1].value), "=r"(to[2].value), "=r"(to[3].value)
               : "r"(from)
               : "memory");
}

#define STEERDIFF_MMA(type)                                                                                   \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                                         \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"                         \
               : "+f"(c[0].value), "+f"(c[1].value), "+f"(c[2].value), "+f"(c[3].value)                       \
               : "r"(a[0].value), "r"(a[1].value), "r"(a[2].value), "r"(a[3].value), "r"(b0.value), "r"(b1.value))

// c += a b with c [16, 8], a [16, 16] and b [16, 8]; with g = l / 4 and t = 2 * (l % 4), lane l has
//   of c: (g, t), (g, t + 1), (g + 8, t), (g + 8, t + 1),
//   of a, two to a register: (g, t ..), (g + 8, t ..), (g, t + 8 ..), (g + 8, t + 8 ..),
//   of b, two to a register: (t .., g), (t + 8 .., g).
template <class T>
DEVICE void multiply_add(Lanes<float> (&c)[4], const Lanes<uint32_t> (&a)[4], Lanes<uint32_t> b0, Lanes<uint32_t> b1);
template <>
DEVICE void multiply_add<Half>(
    Lanes<float> (&c)[4], const Lanes<uint32_t> (&a)[4], Lanes<uint32_t> b0, Lanes<uint32_t> b1) {
  STEERDIFF_MMA("f16");
}
template <>
DEVICE void multiply_add<BFloat16>(
    Lanes<float> (&c)[4], const Lanes<uint32_t> (&a)[4], Lanes<uint32_t> b0, Lanes<uint32_t> b1) {
  STEERDIFF_MMA("bf16");
}
#undef STEERDIFF_MMA

}  // namespace steerdiff
#endif

namespace steerdiff {

// Two numbers rounded into one register, the first in the lower half.
template <class T>
DEVICE uint32_t pack(float first, float second) {
  return static_cast<uint32_t>(from_float<T>(first).bits) | static_cast<uint32_t>(from_float<T>(second).bits) << 16;
}

// Sums and maxima over each four neighbouring lanes, with the same bits in all four.
DEVICE Lanes<float> quad_sum(Lanes<float> x) {
  for (int mask = 1; mask < 4; mask *= 2) {
    const Lanes<float> other = shuffle_xor(x, mask);
    FOR_LANES(l) x[l] += other[l];
  }
  return x;
}
DEVICE Lanes<float> quad_max(Lanes<float> x) {
  for (int mask = 1; mask < 4; mask *= 2) {
    const Lanes<float> other = shuffle_xor(x, mask);
    FOR_LANES(l) x[l] = fmaxf(x[l], other[l]);
  }
  return x;
}

// Sum over all lanes, with the same bits in all.
DEVICE Lanes<float> warp_sum(Lanes<float> x) {
  for (int mask = 1; mask < 32; mask *= 2) {
    const Lanes<float> other = shuffle_xor(x, mask);
    FOR_LANES(l) x[l] += other[l];
  }
  return x;
}

}  // namespace steerdiff
