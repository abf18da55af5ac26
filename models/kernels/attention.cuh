// Attention with few keys and edits, and with another row's probabilities: see attention.h for what they compute.
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

// The same in float32.
template <int D, int Tiles>
struct Products<float, D, Tiles> {
  DEVICE static void scores(Lanes<float> (&s)[Tiles][4], const float* queries, const float* keys, int count) {
    constexpr int row = pitch<float, D>;
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      if (8 * j >= count) break;
      FOR_LANES(l) {
#pragma unroll 4
        for (int k = 0; k < D; k += 4) {
          Chunk<float> q[2], key[2];
          for (int i = 0; i < 2; ++i) {
            q[i] = *reinterpret_cast<const Chunk<float>*>(queries + (l / 4 + 8 * i) * row + k);
            key[i] = *reinterpret_cast<const Chunk<float>*>(keys + (8 * j + l % 4 * 2 + i) * row + k);
          }
#pragma unroll
          for (int c = 0; c < 4; ++c)
#pragma unroll
            for (int i = 0; i < 4; ++i) s[j][c][l] += q[c / 2].numbers[i] * key[c % 2].numbers[i];
        }
      }
    }
  }

  DEVICE static void add(Lanes<float> (&o)[D / 8][4], Lanes<float> (&p)[Tiles][4], const float* values, int count) {
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      if (8 * j >= count) break;
#pragma unroll
      for (int key = 0; key < 8; ++key) {
        const Lanes<float> upper = quad_broadcast(p[j][key % 2], key / 2);
        const Lanes<float> lower = quad_broadcast(p[j][2 + key % 2], key / 2);
        const float* row = values + (8 * j + key) * pitch<float, D>;
        FOR_LANES(l) {
#pragma unroll
          for (int k = 0; k < D / 8; ++k)
#pragma unroll
            for (int c = 0; c < 4; ++c) o[k][c][l] += (c < 2 ? upper : lower)[l] * row[8 * k + l % 4 * 2 + c % 2];
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

// Turn scores into exponentials of what they exceed the greatest so far by; `fade` is the factor for all earlier ones.
// Where no key was seen yet the base is 0, so that nothing is taken from infinity.
template <int Tiles>
DEVICE void exponentials(Lanes<float> (&s)[Tiles][4], Seen& seen, Lanes<float> (&fade)[2], const float* bias, int count,
                         float scale) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    Lanes<float> top = seen.base[i], sum;
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      if (8 * j >= count) break;
#pragma unroll
      for (int c = 2 * i; c < 2 * i + 2; ++c) FOR_LANES(l) {
        if (bias[8 * j + l % 4 * 2 + c % 2] < 0.0f) s[j][c][l] = -INFINITY;
        top[l] = fmaxf(top[l], s[j][c][l]);
      }
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

// Write, or add to what this very lane has written, the probabilities' products with each word's weights.
template <int Tiles>
DEVICE void sum_words(const AttentionArgs& args, const Lanes<float> (&p)[Tiles][4], Place at, int first, bool taken) {
  const int64_t at_words = static_cast<int64_t>(at.row) * args.words;
  const float* weights = (taken ? args.words_taken : args.words_left) + at_words * args.m;
  float* sums = args.sums + (at_words * args.heads + static_cast<int64_t>(at.head) * args.words) * args.n;
  const bool more = !taken && args.edit[at.row] >= 0;
  for (int word = 0; word < args.words; ++word, weights += args.m, sums += args.n) {
    Lanes<float> sum[2];
    for (int i = 0; i < 2; ++i) FOR_LANES(l) sum[i][l] = 0.0f;
#pragma unroll
    for (int j = 0; j < Tiles; ++j) {
      if (8 * j >= args.m) break;
#pragma unroll
      for (int c = 0; c < 4; ++c) FOR_LANES(l) {
        const int key = 8 * j + l % 4 * 2 + c % 2;
        if (key < args.m) sum[c / 2][l] += p[j][c][l] * weights[key];
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      sum[i] = quad_sum(sum[i]);
      FOR_LANES(l) {
        const int query = first + l / 4 + 8 * i;
        if (l % 4 == 0 && query < args.n) sums[query] = (more ? sums[query] : 0.0f) + sum[i][l];
      }
    }
  }
}

// One block of edited_attention: all keys at once. The lead's probabilities with `taken` come first, so that with
// identity edits (`left` of zeros) nothing but zeros is added to what the lead's row has.
template <class T, int D>
DEVICE void edited_block(const AttentionArgs& args, const Plan& plan, void* memory, Place at) {
  using Multiply = Products<T, D, max_keys / 8>;
  const Shared<T, D> shared(memory, plan);
  const int edit = args.edit[at.row], lead = args.lead[at.row] < 0 ? at.row : args.lead[at.row];
  const int first = (at.tile * warp_count() + warp_index()) * warp_queries;
  Lanes<float> o[D / 8][4];
  clear(o);
  for (int pass = edit < 0 ? 1 : 0; pass < 2; ++pass) {
    const int row = pass == 0 ? lead : at.row;
    const T* keys = part<T>(args.k, args.k_stride, row, at.head, 0);
    const auto& stride = edit < 0 ? args.v_stride : pass == 0 ? args.taken_stride : args.left_stride;
    const void* tensor = edit < 0 ? args.v : pass == 0 ? args.taken : args.left;
    const T* values = part<T>(tensor, stride, edit < 0 ? row : edit, at.head, 0);
    load_bias(args, shared.bias, row, 0, plan.keys);
    load_queries<T, D>(args, shared, row, at.head, first);
    load_rows<T, D>(shared.keys, keys, args.k_stride[2], args.m, plan.keys, args.d, warp_index(), warp_count());
    commit_copies();
    if (plan.apart)
      load_rows<T, D>(shared.values, values, stride[2], args.m, plan.keys, args.d, warp_index(), warp_count());
    commit_copies();
    wait_copies<1>();
    block_sync();
    Lanes<float> p[max_keys / 8][4], fade[2];
    Seen seen;
    clear(p);
    Multiply::scores(p, shared.queries, shared.keys, plan.keys);
    exponentials(p, seen, fade, shared.bias, plan.keys, args.scale);
    normalise(p, seen);
    if (args.sums && at.row < args.word_rows) sum_words(args, p, at, first, pass == 0);
    if (!plan.apart) {
      block_sync();
      load_rows<T, D>(shared.values, values, stride[2], args.m, plan.keys, args.d, warp_index(), warp_count());
      commit_copies();
    }
    wait_copies<0>();
    block_sync();
    Multiply::add(o, p, shared.values, plan.keys);
    block_sync();
  }
  if (first < args.n) store<T, D>(args, shared.queries, o, at, first);
}

// One block of led_attention: some keys at a time; the next are on their way while the present ones are worked on.
template <class T, int D>
DEVICE void led_block(const AttentionArgs& args, const Plan& plan, void* memory, Place at) {
  constexpr int step = led_keys<T>;
  using Multiply = Products<T, D, step / 8>;
  const Shared<T, D> shared(memory, plan);
  const int lead = args.lead[at.row] < 0 ? at.row : args.lead[at.row];
  const int first = (at.tile * warp_count() + warp_index()) * warp_queries;
  const auto load = [&](T* to, const void* tensor, const int64_t (&stride)[3], int row, int key) {
    if (key < args.m) {
      const T* from = part<T>(tensor, stride, row, at.head, key);
      load_rows<T, D>(to, from, stride[2], args.m - key, step, args.d, warp_index(), warp_count());
    }
    commit_copies();
  };
  load_bias(args, shared.bias, lead, 0, step);
  load_queries<T, D>(args, shared, lead, at.head, first);
  load(shared.keys, args.k, args.k_stride, lead, 0);
  load(shared.values, args.v, args.v_stride, at.row, 0);
  Lanes<float> o[D / 8][4];
  Seen seen;
  clear(o);
  for (int key = 0, odd = 0; key < args.m; key += step, odd ^= 1) {
    Lanes<float> p[step / 8][4], fade[2];
    wait_copies<1>();  // for the keys
    block_sync();
    clear(p);
    Multiply::scores(p, shared.queries, shared.keys, step);
    block_sync();
    load_bias(args, shared.bias + (1 - odd) * step, lead, key + step, step);
    load(shared.keys, args.k, args.k_stride, lead, key + step);
    exponentials(p, seen, fade, shared.bias + odd * step, step, args.scale);
    multiply(o, fade);
    wait_copies<1>();  // for the values
    block_sync();
    Multiply::add(o, p, shared.values, step);
    block_sync();
    load(shared.values, args.v, args.v_stride, at.row, key + step);
  }
  normalise(o, seen);
  if (first < args.n) store<T, D>(args, shared.queries, o, at, first);
}

// The plan with the most warps that has use for them and fits; apart where both fit. No warps if none fits.
inline Plan fitting_plan(const AttentionArgs& args, int padded, int keys, bool may_share, int limit) {
  const int size = args.dtype == DType::float32 ? 4 : 2, row = padded * size + 16;
  for (int warps = 4; warps > 0; warps /= 2) {
    if (warps > 1 && args.n <= warps / 2 * warp_queries) continue;
    for (int sets = 2; sets > (may_share ? 0 : 1); --sets) {
      const int bytes = keys * 8 + (keys * sets + warps * warp_queries) * row;
      if (bytes <= limit) return {warps, keys, sets == 2, bytes};
    }
  }
  return {0, 0, false, 0};
}
inline Plan edited_plan(const AttentionArgs& args, int padded, int limit) {
  if (args.m > max_keys) return {0, 0, false, 0};
  return fitting_plan(args, padded, (args.m + 15) / 16 * 16, true, limit);
}
inline Plan led_plan(const AttentionArgs& args, int padded, int limit) {
  return fitting_plan(args, padded, args.dtype == DType::float32 ? led_keys<float> : led_keys<Half>, false, limit);
}

inline int padded_head(int d) {
  for (const int padded : {32, 48, 64, 80, 96, 128, 160})
    if (d <= padded) return padded;
  return 0;
}

inline bool supported(const AttentionArgs& args) {
  return args.rows > 0 && args.rows <= max_rows && args.heads > 0 && args.heads < 65536 && args.n > 0 && args.m > 0 &&
         args.d > 0 && args.d <= max_head && args.d % 8 == 0 && args.scale > 0.0f;
}

// Call f.template run<T, D>() with the number type and padded head size of args.
template <class T, class F>
auto with_head(const AttentionArgs& args, F&& f) {
  switch (padded_head(args.d)) {
    case 32: return f.template run<T, 32>();
    case 48: return f.template run<T, 48>();
    case 64: return f.template run<T, 64>();
    case 80: return f.template run<T, 80>();
    case 96: return f.template run<T, 96>();
    case 128: return f.template run<T, 128>();
    default: return f.template run<T, 160>();
  }
}
template <class F>
auto with_types(const AttentionArgs& args, F&& f) {
  if (args.dtype == DType::half) return with_head<Half>(args, f);
  if (args.dtype == DType::bfloat16) return with_head<BFloat16>(args, f);
  return with_head<float>(args, f);
}

}  // namespace steerdiff
