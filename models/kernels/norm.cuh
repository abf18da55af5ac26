// Group normalisation, scale and shift, SiLU, and their gradients, written by warps: see norm.h for what they compute.
//
// A pass is a struct whose `warp` does one warp's share; no two warps of a pass meet, so there is no shared memory, no
// sync and no atomic.
#pragma once
#include <initializer_list>

#include "norm_parts.cuh"

namespace steerdiff {

// Forward, first: mean and squares of each channel of each tile, to `work`.
template <class K>
struct Moments {
  static int64_t warps(const NormArgs& args) { return Tile<K>::count(args); }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const Tile<K> tile(args, length, warp);
    Lanes<Spread<K::width>> spread;
    FOR_LANES(l) {
      spread[l] = {};
      tile.each(args, l, [&](int64_t offset) {
        float x[K::V];
        load<K>(x, args.x, offset);
        Spread<K::width> more = {1.0f, {}, {}};
        if (K::channels_last) {
          for (int i = 0; i < K::width; ++i) more.mean[i] = x[i];
        } else {
          float sum = 0.0f;
          for (int v = 0; v < K::V; ++v) sum += x[v];
          more.count = K::V;
          more.mean[0] = sum / K::V;
          for (int v = 0; v < K::V; ++v) more.squares[0] += (x[v] - more.mean[0]) * (x[v] - more.mean[0]);
        }
        spread[l].merge(more);
      });
    }
    merge_lanes(spread, Tile<K>::first_mask);
    tile.each_channel(args, [&](int l, int c, int i) {
      float* partial = tile.partial(args, c);
      partial[0] = spread[l].mean[i];
      partial[1] = spread[l].squares[i];
    });
  }
};

// Forward, second: mean and rstd of one row and group, from `work`.
struct Fold {
  static int64_t warps(const NormArgs& args) { return static_cast<int64_t>(args.rows) * args.groups; }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const int64_t row = warp / args.groups, chunks = (args.cells + length - 1) / length;
    const int size = args.channels / args.groups, first = static_cast<int>(warp % args.groups) * size;
    Lanes<Spread<1>> spread;
    FOR_LANES(l) {
      spread[l] = {};
      for (int64_t i = l; i < chunks * size; i += 32) {
        const int64_t chunk = i / size, left = args.cells - chunk * length;
        const float* partial = args.work + 2 * ((row * chunks + chunk) * args.channels + first + i % size);
        spread[l].merge({static_cast<float>(left < length ? left : length), {partial[0]}, {partial[1]}});
      }
    }
    merge_lanes(spread, 1);
    FOR_LANES(l) {
      if (l == 0) {
        args.mean[warp] = spread[l].mean[0];
        args.rstd[warp] = 1.0f / sqrtf(spread[l].squares[0] / spread[l].count + args.eps);
      }
    }
  }
};

// Forward, third: y.
template <class K>
struct Apply {
  static int64_t warps(const NormArgs& args) { return Tile<K>::count(args); }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const Tile<K> tile(args, length, warp);
    FOR_LANES(l) {
      if (tile.channel_of(l) < args.channels) {
        Line lines[K::width];
        for (int i = 0; i < K::width; ++i) lines[i] = Line(args, tile.row, tile.channel_of(l) + i);
        tile.each(args, l, [&](int64_t offset) {
          float x[K::V];
          load<K>(x, args.x, offset);
          for (int v = 0; v < K::V; ++v) {
            const float u = lines[v % K::width](x[v]);
            x[v] = args.act ? u / (1.0f + expf(-u)) : u;
          }
          store<K>(args.y, offset, x);
        });
      }
    }
  }
};

// Gradient by u, from the gradient by y.
DEVICE float before_act(const NormArgs& args, float u, float dy) {
  if (!args.act) return dy;
  const float sigmoid = 1.0f / (1.0f + expf(-u));
  return dy * sigmoid * (1.0f + u * (1.0f - sigmoid));
}

// Where in `work`, behind the partial numbers, the two sums of a row and channel, and of a row and group, are.
DEVICE float* channel_sums(const NormArgs& args, int64_t length, int64_t row, int c) {
  const int64_t chunks = (args.cells + length - 1) / length;
  return args.work + 2 * ((args.rows * chunks + row) * args.channels + c);
}
DEVICE float* group_means(const NormArgs& args, int64_t length, int64_t group) {
  return channel_sums(args, length, args.rows, 0) + 2 * group;
}

// Backward, first: of each channel of each tile the sums of du and of du times normalised x, to `work`.
template <class K>
struct Sums {
  static int64_t warps(const NormArgs& args) { return Tile<K>::count(args); }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const Tile<K> tile(args, length, warp);
    Lanes<float> plain[K::width], weighted[K::width];
    FOR_LANES(l) {
      Line lines[K::width];
      for (int i = 0; i < K::width; ++i) {
        plain[i][l] = weighted[i][l] = 0.0f;
        if (tile.channel_of(l) < args.channels) lines[i] = Line(args, tile.row, tile.channel_of(l) + i);
      }
      tile.each(args, l, [&](int64_t offset) {
        float x[K::V], dy[K::V];
        load<K>(x, args.x, offset);
        load<K>(dy, args.dy, offset);
        for (int v = 0; v < K::V; ++v) {
          const int i = v % K::width;
          const float du = before_act(args, lines[i](x[v]), dy[v]);
          plain[i][l] += du;
          weighted[i][l] += du * (x[v] - lines[i].mean);
        }
      });
    }
    for (int i = 0; i < K::width; ++i) {
      for (int mask = Tile<K>::first_mask; mask < 32; mask *= 2) {
        const Lanes<float> other = shuffle_xor(plain[i], mask), other_weighted = shuffle_xor(weighted[i], mask);
        FOR_LANES(l) {
          plain[i][l] += other[l];
          weighted[i][l] += other_weighted[l];
        }
      }
    }
    tile.each_channel(args, [&](int l, int c, int i) {
      float* partial = tile.partial(args, c);
      partial[0] = plain[i][l];
      partial[1] = weighted[i][l] * args.rstd[tile.row * args.groups + c / (args.channels / args.groups)];
    });
  }
};

// Backward, second: these sums of one row and group over all chunks; gradients by scale and shift; and the means over
// the group of both, weighted by what multiplies normalised x.
struct FoldSums {
  static int64_t warps(const NormArgs& args) { return static_cast<int64_t>(args.rows) * args.groups; }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const int64_t row = warp / args.groups, chunks = (args.cells + length - 1) / length;
    const int size = args.channels / args.groups, first = static_cast<int>(warp % args.groups) * size;
    Lanes<float> total, total_weighted;
    FOR_LANES(l) total[l] = total_weighted[l] = 0.0f;
    for (int c = first; c < first + size; ++c) {
      Lanes<float> plain, weighted;
      FOR_LANES(l) {
        plain[l] = weighted[l] = 0.0f;
        for (int64_t chunk = l; chunk < chunks; chunk += 32) {
          const float* partial = args.work + 2 * ((row * chunks + chunk) * args.channels + c);
          plain[l] += partial[0];
          weighted[l] += partial[1];
        }
      }
      plain = warp_sum(plain);
      weighted = warp_sum(weighted);
      const float weight = number(args.weight, c, args.param_dtype), bias = number(args.bias, c, args.param_dtype);
      const float gain = weight * scale_of(args, row, c);
      FOR_LANES(l) {
        total[l] += gain * plain[l];
        total_weighted[l] += gain * weighted[l];
        if (l == 0) {
          float* sums = channel_sums(args, length, row, c);
          sums[0] = plain[l];
          sums[1] = weighted[l];
          if (args.d_shift) args.d_shift[row * args.channels + c] = plain[l];
          if (args.d_scale) args.d_scale[row * args.channels + c] = weight * weighted[l] + bias * plain[l];
        }
      }
    }
    FOR_LANES(l) {
      if (l == 0) {
        const float numbers = static_cast<float>(size) * static_cast<float>(args.cells);
        float* means = group_means(args, length, warp);
        means[0] = total[l] / numbers;
        means[1] = total_weighted[l] / numbers;
      }
    }
  }
};

// Backward, third: gradients by weight and bias, a lane to a channel, row after row.
struct Parameters {
  static int64_t warps(const NormArgs& args) { return args.d_weight || args.d_bias ? (args.channels + 31) / 32 : 0; }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    FOR_LANES(l) {
      const int c = static_cast<int>(warp) * 32 + l;
      if (c < args.channels) {
        float plain = 0.0f, weighted = 0.0f;
        for (int row = 0; row < args.rows; ++row) {
          const float scale = scale_of(args, row, c);
          const float* sums = channel_sums(args, length, row, c);
          plain += scale * sums[0];
          weighted += scale * sums[1];
        }
        if (args.d_bias) args.d_bias[c] = plain;
        if (args.d_weight) args.d_weight[c] = weighted;
      }
    }
  }
};

// Backward, fourth: dx = slope * du - rstd * (mean of du + normalised x * mean of du times normalised x).
template <class K>
struct ApplySums {
  static int64_t warps(const NormArgs& args) { return args.dx ? Tile<K>::count(args) : 0; }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const Tile<K> tile(args, length, warp);
    FOR_LANES(l) {
      if (tile.channel_of(l) < args.channels) {
        Line lines[K::width], corrections[K::width];  // a correction is a line in x too
        for (int i = 0; i < K::width; ++i) {
          const int c = tile.channel_of(l) + i;
          const int64_t group = static_cast<int64_t>(tile.row) * args.groups + c / (args.channels / args.groups);
          const float rstd = args.rstd[group];
          const float* means = group_means(args, length, group);
          lines[i] = Line(args, tile.row, c);
          corrections[i].mean = args.mean[group];
          corrections[i].slope = rstd * rstd * means[1];
          corrections[i].offset = rstd * means[0];
        }
        tile.each(args, l, [&](int64_t offset) {
          float x[K::V], dy[K::V];
          load<K>(x, args.x, offset);
          load<K>(dy, args.dy, offset);
          for (int v = 0; v < K::V; ++v) {
            const Line& line = lines[v % K::width];
            x[v] = line.slope * before_act(args, line(x[v]), dy[v]) - corrections[v % K::width](x[v]);
          }
          store<K>(args.dx, offset, x);
        });
      }
    }
  }
};

// Whether args are within the limits of norm.h.
inline bool norm_takes(const NormArgs& args) {
  return args.rows > 0 && args.channels > 0 && args.groups > 0 && args.cells > 0 && args.channels % args.groups == 0;
}

// Whether V elements can be loaded at once from each of the pointers (null for one that is not there).
inline bool norm_aligned(const NormArgs& args, int V, std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<std::uintptr_t>(pointer) % 16) return false;
  }
  return (args.channels_last ? args.channels : args.cells) % V == 0;
}

// Call f with the Kind of args.
template <class T, class F>
void with_layout(const NormArgs& args, std::initializer_list<const void*> pointers, F f) {
  constexpr int V = 16 / sizeof(T);
  const bool aligned = norm_aligned(args, V, pointers);
  if (args.channels_last && aligned) return f(Kind<T, V, true>{});
  if (args.channels_last) return f(Kind<T, 1, true>{});
  if (aligned) return f(Kind<T, V, false>{});
  return f(Kind<T, 1, false>{});
}
template <class F>
void with_kind(const NormArgs& args, std::initializer_list<const void*> pointers, F f) {
  if (args.dtype == DType::half) return with_layout<Half>(args, pointers, f);
  if (args.dtype == DType::bfloat16) return with_layout<BFloat16>(args, pointers, f);
  return with_layout<float>(args, pointers, f);
}

// The passes of both, in order; `run(pass)` runs all warps of one.
template <class Run>
void norm_forward_passes(const NormArgs& args, Run run) {
  with_kind(args, {args.x, args.y}, [&](auto kind) {
    using K = decltype(kind);
    run(Moments<K>{});
    run(Fold{});
    run(Apply<K>{});
  });
}
template <class Run>
void norm_backward_passes(const NormArgs& args, Run run) {
  with_kind(args, {args.x, args.dy, args.dx}, [&](auto kind) {
    using K = decltype(kind);
    run(Sums<K>{});
    run(FoldSums{});
    run(Parameters{});
    run(ApplySums<K>{});
  });
}

}  // namespace steerdiff
