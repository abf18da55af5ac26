// The parts of attention.cuh: loads and stores, products and softmax of a warp's queries.
//
// A warp has 16 queries of one head of one row; a block has up to 4 warps, with the keys and values in shared memory.
// Scores and results lie in registers as multiply_add has its c: with g = l / 4 and t = 2 * (l % 4), number c of tile j
// is of query g + 8 * (c / 2) and of key (or channel) 8 * j + t + c % 2.
#pragma once
#include "attention.h"
#include "lanes.cuh"

namespace steerdiff {

constexpr int warp_queries = 16;
constexpr float log2_e = 1.4426950408889634f;

// Rows in shared memory are 16 bytes longer than D numbers: eight of them in a column lie in different banks.
template <class T>
constexpr int chunk = 16 / sizeof(T);
template <class T, int D>
constexpr int pitch = D + chunk<T>;

// Keys at a time in led_attention.
template <class T>
constexpr int led_keys = sizeof(T) == 4 ? 32 : 64;

// The part of the result that a block computes.
struct Place {
  int tile, head, row;
};

// How a block divides its shared memory: bias of the keys at hand and of the next, keys, values (or the keys' space
// again), queries.
struct Plan {
  int warps, keys;  // keys at a time, a multiple of 16
  bool apart;       // whether values have their own space
  int bytes;
};

template <class T, int D>
struct Shared {
  float* bias;  // 0 where a key may be seen, else -infinity
  T *keys, *values, *queries;

  DEVICE Shared(void* memory, const Plan& plan)
      : bias(static_cast<float*>(memory)),
        keys(reinterpret_cast<T*>(bias + 2 * plan.keys)),
        values(keys + (plan.apart ? plan.keys * pitch<T, D> : 0)),
        queries(values + (plan.keys + warp_index() * warp_queries) * pitch<T, D>) {}
};

template <class T>
struct alignas(16) Chunk {
  T numbers[chunk<T>];
};

// Copy `count` of `rows` rows of d numbers to shared memory, with zeros elsewhere; there after wait_copies and a sync.
template <class T, int D>
DEVICE void load_rows(T* to, const T* from, int64_t stride, int count, int rows, int d, int worker, int workers) {
  constexpr int chunks = D / chunk<T>;
  const bool aligned = (reinterpret_cast<uintptr_t>(from) | static_cast<uintptr_t>(stride * sizeof(T))) % 16 == 0;
  FOR_LANES(l) {
#pragma unroll 1
    for (int i = worker * 32 + l; i < rows * chunks; i += workers * 32) {
      const int row = i / chunks, column = i % chunks * chunk<T>;
      T* cell = to + row * pitch<T, D> + column;
      const T* source = from + row * stride + column;
      if (row >= count || column >= d) {
        *reinterpret_cast<Chunk<T>*>(cell) = {};
      } else if (aligned) {
        copy_async16(cell, source);
      } else {
        for (int j = 0; j < chunk<T>; ++j) cell[j] = source[j];
      }
    }
  }
}

// Where row, head and first token of a tensor lie.
template <class T>
DEVICE const T* part(const void* tensor, const int64_t (&stride)[3], int row, int head, int64_t token) {
  return static_cast<const T*>(tensor) + row * stride[0] + head * stride[1] + token * stride[2];
}

// This warp's queries of a row.
template <class T, int D>
DEVICE void load_queries(const AttentionArgs& args, const Shared<T, D>& shared, int row, int head, int first) {
  if (first >= args.n) first = args.n - 1;  // a warp without queries repeats the last
  const T* from = part<T>(args.q, args.q_stride, row, head, first);
  load_rows<T, D>(shared.queries, from, args.q_stride[2], args.n - first, warp_queries, args.d, 0, 1);
}

DEVICE void load_bias(const AttentionArgs& args, float* bias, int row, int first, int keys) {
  const bool* mask = args.mask ? args.mask + row * args.mask_stride : nullptr;
  FOR_LANES(l) {
    for (int i = warp_index() * 32 + l; i < keys; i += warp_count() * 32) {
      bias[i] = first + i < args.m && (!mask || mask[first + i]) ? 0.0f : -INFINITY;
    }
  }
}

template <int Tiles>
DEVICE void clear(Lanes<float> (&x)[Tiles][4]) {
#pragma unroll
  for (int j = 0; j < Tiles; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c) FOR_LANES(l) x[j][c][l] = 0.0f;
}

// Products of 16-bit queries with keys, `count` keys of Tiles * 8, by matrix instructions.
template <class T, int D, int Tiles>
struct Products {
  DEVICE static void scores(Lanes<float> (&s)[Tiles][4], const T* queries, const T* keys, int count) {
#pragma unroll
    for (int k = 0; k < D; k += 16) {
      Lanes<uint32_t> a[4], b[4];
      Lanes<const void*> rows;
      FOR_LANES(l) rows[l] = queries + (l % 16) * pitch<T, D> + k + l / 16 * 8;
      load_matrices(a, rows);
#pragma unroll
      for (int j = 0; j < Tiles; j += 2) {
        if (8 * j >= count) break;
        FOR_LANES(l) rows[l] = keys + (8 * j + l % 8 + l / 16 * 8) * pitch<T, D> + k + l / 8 % 2 * 8;
        load_matrices(b, rows);
        multiply_add<T>(s[j], a, b[0], b[1]);
        multiply_add<T>(s[j + 1], a, b[2], b[3]);
      }
    }
  }

  // o += p values
  DEVICE static void add(Lanes<float> (&o)[D / 8][4], Lanes<float> (&p)[Tiles][4], const T* values, int count) {
#pragma unroll
    for (int j = 0; j < Tiles; j += 2) {
      if (8 * j >= count) break;
      Lanes<uint32_t> a[4], b[4];
      Lanes<const void*> rows;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        FOR_LANES(l) a[i][l] = pack<T>(p[j + i / 2][i % 2 * 2][l], p[j + i / 2][i % 2 * 2 + 1][l]);
      }
#pragma unroll
      for (int k = 0; k < D; k += 16) {
        FOR_LANES(l) rows[l] = values + (8 * j + l % 16) * pitch<T, D> + k + l / 16 * 8;
        load_transposed(b, rows);
        multiply_add<T>(o[k / 8], a, b[0], b[1]);
        multiply_add<T>(o[k / 8 + 1], a, b[2], b[3]);
      }
    }
  }
};

// The same in float32; a query's numbers are read once for all keys, and lie in 8 registers.
template <int D, int Tiles>
struct Products<float, D, Tiles> {
  DEVICE static void scores(Lanes<float> (&s)[Tiles][4], const float* queries, const float* keys, int count) {
    constexpr int row = pitch<float, D>;
#pragma unroll 1
    for (int k = 0; k < D; k += 4) {
      Lanes<Chunk<float>> q[2];
      for (int i = 0; i < 2; ++i) {
        FOR_LANES(l) q[i][l] = *reinterpret_cast<const Chunk<float>*>(queries + (l / 4 + 8 * i) * row + k);
      }
#pragma unroll
      for (int j = 0; j < Tiles; j += 2) {
        if (8 * j >= count) break;
        FOR_LANES(l) {
          Chunk<float> key[4];
          for (int i = 0; i < 4; ++i) {
            key[i] = *reinterpret_cast<const Chunk<float>*>(keys + (8 * (j + i / 2) + l % 4 * 2 + i % 2) * row + k);
          }
#pragma unroll
          for (int c = 0; c < 8; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
              s[j + c / 4][c % 4][l] += q[c / 2 % 2][l].numbers[i] * key[c / 4 * 2 + c % 2].numbers[i];
            }
        }
      }
    }
  }

  DEVICE static void add(Lanes<float> (&o)[D / 8][4], Lanes<float> (&p)[Tiles][4], const float* values, int count) {
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      if (8 * j >= count) break;
#pragma unroll 1
      for (int pair = 0; pair < 4; ++pair) {
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const Lanes<float> upper = quad_broadcast(p[j][odd], pair), lower = quad_broadcast(p[j][2 + odd], pair);
          const float* row = values + (8 * j + 2 * pair + odd) * pitch<float, D>;
          FOR_LANES(l) {
#pragma unroll
            for (int k = 0; k < D / 8; ++k)
#pragma unroll
              for (int c = 0; c < 4; ++c) o[k][c][l] += (c < 2 ? upper : lower)[l] * row[8 * k + l % 4 * 2 + c % 2];
          }
        }
      }
    }
  }
};

// What a softmax has seen so far, for the queries g and g + 8 of each lane.
struct Seen {
  Lanes<float> base[2], sum[2];

  DEVICE Seen() {
    for (int i = 0; i < 2; ++i) FOR_LANES(l) base[i][l] = -INFINITY, sum[i][l] = 0.0f;
  }
};

// Make the scores of keys that may not be seen -infinity.
template <int Tiles>
DEVICE void hide(Lanes<float> (&s)[Tiles][4], const float* bias, int count) {
#pragma unroll
  for (int j = 0; j < Tiles; ++j) {
    if (8 * j >= count) break;
#pragma unroll
    for (int c = 0; c < 4; ++c) FOR_LANES(l) {
      if (bias[8 * j + l % 4 * 2 + c % 2] < 0.0f) s[j][c][l] = -INFINITY;
    }
  }
}

// Turn scores into exponentials of what they exceed the greatest so far by; `fade` is the factor for all earlier ones.
// Where no key was seen yet the base is 0, so that nothing is taken from infinity.
template <int Tiles>
DEVICE void exponentials(Lanes<float> (&s)[Tiles][4], Seen& seen, Lanes<float> (&fade)[2], int count, float scale) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Lanes<float> top = seen.base[i], sum;
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      if (8 * j >= count) break;
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) FOR_LANES(l) top[l] = fmaxf(top[l], s[j][c][l]);
    }
    top = quad_max(top);
    FOR_LANES(l) {
      const float base = top[l] == -INFINITY ? 0.0f : top[l];
      fade[i][l] = exp2_of((seen.base[i][l] - base) * scale * log2_e);
      sum[l] = 0.0f;
#pragma unroll
      for (int j = 0; j < Tiles; ++j) {
        if (8 * j >= count) break;
#pragma unroll
        for (int c = 2 * i; c < 2 * i + 2; ++c) {
          s[j][c][l] = exp2_of((s[j][c][l] - base) * scale * log2_e);
          sum[l] += s[j][c][l];
        }
      }
    }
    sum = quad_sum(sum);
    FOR_LANES(l) seen.sum[i][l] = seen.sum[i][l] * fade[i][l] + sum[l];
    seen.base[i] = top;
  }
}

// x *= factor, by query.
template <int Tiles>
DEVICE void multiply(Lanes<float> (&x)[Tiles][4], const Lanes<float> (&factor)[2]) {
#pragma unroll
  for (int j = 0; j < Tiles; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c) FOR_LANES(l) x[j][c][l] *= factor[c / 2][l];
}

// x /= sum of the exponentials; 0 stays 0 where a query saw no key.
template <int Tiles>
DEVICE void normalise(Lanes<float> (&x)[Tiles][4], const Seen& seen) {
  Lanes<float> factor[2];
  for (int i = 0; i < 2; ++i) FOR_LANES(l) factor[i][l] = seen.sum[i][l] == 0.0f ? 0.0f : 1.0f / seen.sum[i][l];
  multiply(x, factor);
}

// Write this warp's results by way of its queries' space.
template <class T, int D>
DEVICE void store(const AttentionArgs& args, T* staged, const Lanes<float> (&o)[D / 8][4], Place at, int first) {
  warp_sync();
#pragma unroll
  for (int j = 0; j < D / 8; ++j)
#pragma unroll
    for (int c = 0; c < 4; ++c) FOR_LANES(l) {
      staged[(l / 4 + 8 * (c / 2)) * pitch<T, D> + 8 * j + l % 4 * 2 + c % 2] = from_float<T>(o[j][c][l]);
    }
  warp_sync();
  T* to = const_cast<T*>(part<T>(args.out, args.out_stride, at.row, at.head, first));
  const int64_t stride = args.out_stride[2];
  const bool aligned = (reinterpret_cast<uintptr_t>(to) | static_cast<uintptr_t>(stride * sizeof(T))) % 16 == 0;
  const int count = args.n - first < warp_queries ? args.n - first : warp_queries, chunks = args.d / chunk<T>;
  FOR_LANES(l) {
    for (int i = l; i < count * chunks; i += 32) {
      const int row = i / chunks, column = i % chunks * chunk<T>;
      const T* cell = staged + row * pitch<T, D> + column;
      if (aligned) {
        *reinterpret_cast<Chunk<T>*>(to + row * stride + column) = *reinterpret_cast<const Chunk<T>*>(cell);
      } else {
        for (int j = 0; j < chunk<T>; ++j) to[row * stride + column + j] = cell[j];
      }
    }
  }
}

}  // namespace steerdiff
