// Attention with few keys and edits, and with another row's probabilities: see attention.h for what they compute.
#pragma once
#include <initializer_list>

#include "attention_parts.cuh"

namespace steerdiff {

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
        const int own = l % 4 * 2, key = 8 * j + c % 2;  // apart, for own + key would take a register for each key
        if (key < args.m - own) sum[c / 2][l] += p[j][c][l] * (weights + own)[key];
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

// This warp's probabilities of all keys, from what of them and of the queries is in shared memory.
template <class T, int D>
DEVICE void probabilities(Lanes<float> (&p)[max_keys / 8][4], const Shared<T, D>& shared, int keys, float scale) {
  Lanes<float> fade[2];
  Seen seen;
  clear(p);
  Products<T, D, max_keys / 8>::scores(p, shared.queries, shared.keys, keys);
  hide(p, shared.bias, keys);
  exponentials(p, seen, fade, keys, scale);
  normalise(p, seen);
}

// One block of edited_attention: all keys at once. The lead's probabilities with `taken` come first, so that with
// identity edits (`left` of zeros) nothing but zeros is added to what the lead's row has.
template <class T, int D>
DEVICE void edited_block(const AttentionArgs& args, const Plan& plan, void* memory, Place at) {
  const Shared<T, D> shared(memory, plan);
  const int edit = args.edit[at.row], lead = args.lead[at.row] < 0 ? at.row : args.lead[at.row];
  const int first = (at.tile * warp_count() + warp_index()) * warp_queries;
  const auto load = [&](T* to, const void* tensor, const int64_t (&stride)[3], int row) {
    const T* from = part<T>(tensor, stride, row, at.head, 0);
    load_rows<T, D>(to, from, stride[2], args.m, plan.keys, args.d, warp_index(), warp_count());
  };
  Lanes<float> o[D / 8][4];
  clear(o);
  for (int pass = edit < 0 ? 1 : 0; pass < 2; ++pass) {
    const int row = pass == 0 ? lead : at.row;
    const auto load_values = [&] {
      if (edit < 0) return load(shared.values, args.v, args.v_stride, row);
      if (pass == 0) return load(shared.values, args.taken, args.taken_stride, edit);
      return load(shared.values, args.left, args.left_stride, edit);
    };
    load_bias(args, shared.bias, row, 0, plan.keys);
    load_queries<T, D>(args, shared, row, at.head, first);
    load(shared.keys, args.k, args.k_stride, row);
    commit_copies();
    if (plan.apart) load_values();
    commit_copies();
    wait_copies<1>();
    block_sync();
    Lanes<float> p[max_keys / 8][4];
    probabilities(p, shared, plan.keys, args.scale);
    if (args.sums && at.row < args.word_rows) sum_words(args, p, at, first, pass == 0);
    if (!plan.apart) {
      block_sync();
      load_values();
      commit_copies();
    }
    wait_copies<0>();
    block_sync();
    Products<T, D, max_keys / 8>::add(o, p, shared.values, plan.keys);
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
    hide(p, shared.bias + odd * step, step);
    exponentials(p, seen, fade, step, args.scale);
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
