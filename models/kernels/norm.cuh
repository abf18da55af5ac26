// Group normalisation, scale and shift, SiLU, and their gradients, written by warps: see norm.h for what they compute.
//
// A pass is a struct whose `warp` does one warp's share; no two warps of a pass meet, so there is no shared memory, no
// sync and no atomic. Passes over numbers go by tiles: a row, some channels and a chunk of cells.
#pragma once
#include <initializer_list>

#include "lanes.cuh"
#include "norm.h"

namespace steerdiff {

// Storage of one kind: elements T, V to a load, in one of the two layouts.
template <class T_, int V_, bool channels_last_>
struct Kind {
  using T = T_;
  static constexpr int V = V_;
  static constexpr bool channels_last = channels_last_;
  static constexpr int width = channels_last ? V : 1;  // channels that one lane meets
};

template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  T values[V];
};

// What one warp takes: without channels_last one channel, its lanes side by side along the cells; with it 4 lanes side
// by side along the channels, times 8 cells.
template <class K>
struct Tile {
  int row, channel;     // the first channel
  int64_t chunk, chunks;
  int64_t begin, end;   // cells

  static int64_t count(const NormArgs& args) {
    const int64_t length = norm_chunk(args), chunks = (args.cells + length - 1) / length;
    return args.rows * chunks * (K::channels_last ? (args.channels + 4 * K::V - 1) / (4 * K::V) : args.channels);
  }

  DEVICE Tile(const NormArgs& args, int64_t length, int64_t warp) {
    chunks = (args.cells + length - 1) / length;
    if (K::channels_last) {
      const int blocks = (args.channels + 4 * K::V - 1) / (4 * K::V);
      channel = static_cast<int>(warp % blocks) * 4 * K::V;
      chunk = warp / blocks % chunks;
      row = static_cast<int>(warp / blocks / chunks);
    } else {
      chunk = warp % chunks;
      channel = static_cast<int>(warp / chunks % args.channels);
      row = static_cast<int>(warp / chunks / args.channels);
    }
    begin = chunk * length;
    end = begin + length < args.cells ? begin + length : args.cells;
  }

  DEVICE int channel_of(int l) const { return K::channels_last ? channel + l % 4 * K::V : channel; }

  // Call f(offset) for each vector of lane l, by the number of its first element in memory.
  template <class F>
  DEVICE void each(const NormArgs& args, int l, F f) const {
    if (channel_of(l) >= args.channels) return;
    const int64_t step = K::channels_last ? 8 : 32 * K::V;
    for (int64_t cell = begin + (K::channels_last ? l / 4 : l * K::V); cell < end; cell += step) {
      f(K::channels_last ? (row * args.cells + cell) * args.channels + channel_of(l)
                         : (static_cast<int64_t>(row) * args.channels + channel) * args.cells + cell);
    }
  }

  // Call f(l, channel, i) for each channel of this tile and the lane and place that keep its sum over the tile.
  template <class F>
  DEVICE void each_channel(const NormArgs& args, F f) const {
    FOR_LANES(l) {
      if (l < (K::channels_last ? 4 : 1) && channel_of(l) < args.channels) {
        for (int i = 0; i < K::width; ++i) f(l, channel_of(l) + i, i);
      }
    }
  }

  // Where in `work` the two numbers of this row, chunk and channel are.
  DEVICE float* partial(const NormArgs& args, int c) const {
    return args.work + 2 * ((row * chunks + chunk) * args.channels + c);
  }

  static constexpr int first_mask = K::channels_last ? 4 : 1;  // of the butterfly over lanes of the same channels
};

template <class K>
DEVICE void load(float (&to)[K::V], const void* from, int64_t offset) {
  using T = typename K::T;
  const auto vector = *reinterpret_cast<const Vector<T, K::V>*>(static_cast<const T*>(from) + offset);
  for (int v = 0; v < K::V; ++v) to[v] = to_float(vector.values[v]);
}

template <class K>
DEVICE void store(void* to, int64_t offset, const float (&from)[K::V]) {
  using T = typename K::T;
  Vector<T, K::V> vector;
  for (int v = 0; v < K::V; ++v) vector.values[v] = from_float<T>(from[v]);
  *reinterpret_cast<Vector<T, K::V>*>(static_cast<T*>(to) + offset) = vector;
}

DEVICE float number(const void* from, int64_t i, DType dtype) {
  if (dtype == DType::float32) return static_cast<const float*>(from)[i];
  if (dtype == DType::half) return to_float(static_cast<const Half*>(from)[i]);
  return to_float(static_cast<const BFloat16*>(from)[i]);
}

// 1 + scale of a row and channel.
DEVICE float scale_of(const NormArgs& args, int64_t row, int c) {
  return args.scale ? 1.0f + number(args.scale, row * args.scale_stride + c, args.dtype) : 1.0f;
}

// u = (x - mean) * slope + offset, for one channel of one row.
struct Line {
  float mean, slope, offset;

  DEVICE Line() {}
  DEVICE Line(const NormArgs& args, int64_t row, int c) {
    const int64_t group = row * args.groups + c / (args.channels / args.groups);
    const float scale = scale_of(args, row, c);
    mean = args.mean[group];
    slope = args.rstd[group] * number(args.weight, c, args.param_dtype) * scale;
    offset = number(args.bias, c, args.param_dtype) * scale;
    if (args.shift) offset += number(args.shift, row * args.shift_stride + c, args.dtype);
  }
  DEVICE float operator()(float x) const { return (x - mean) * slope + offset; }
};

// Count, mean and sum of squared distances from the mean; `merge` as Chan, Golub and LeVeque 1979.
struct Spread {
  float count, mean, squares;

  DEVICE void merge(float other_count, float other_mean, float other_squares) {
    if (other_count == 0.0f) return;
    const float total = count + other_count, share = other_count / total, apart = other_mean - mean;
    mean += apart * share;
    squares += other_squares + apart * apart * count * share;
    count = total;
  }
};

// Merge over all lanes whose numbers differ in a bit of `mask` or above; the lowest of them has the whole.
DEVICE void merge_lanes(Lanes<Spread>& spread, int mask) {
  for (; mask < 32; mask *= 2) {
    Lanes<float> count, mean, squares;
    FOR_LANES(l) {
      count[l] = spread[l].count;
      mean[l] = spread[l].mean;
      squares[l] = spread[l].squares;
    }
    count = shuffle_xor(count, mask);
    mean = shuffle_xor(mean, mask);
    squares = shuffle_xor(squares, mask);
    FOR_LANES(l) spread[l].merge(count[l], mean[l], squares[l]);
  }
}

// Forward, first: mean and squares of each channel of each tile, to `work`.
template <class K>
struct Moments {
  static int64_t warps(const NormArgs& args) { return Tile<K>::count(args); }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const Tile<K> tile(args, length, warp);
    Lanes<Spread> spreads[K::width];
    FOR_LANES(l) {
      for (int i = 0; i < K::width; ++i) spreads[i][l] = {0.0f, 0.0f, 0.0f};
      tile.each(args, l, [&](int64_t offset) {
        float x[K::V];
        load<K>(x, args.x, offset);
        if (K::channels_last) {
          for (int i = 0; i < K::width; ++i) spreads[i][l].merge(1.0f, x[i], 0.0f);
        } else {
          float sum = 0.0f, squares = 0.0f;
          for (int v = 0; v < K::V; ++v) sum += x[v];
          const float mean = sum / K::V;
          for (int v = 0; v < K::V; ++v) squares += (x[v] - mean) * (x[v] - mean);
          spreads[0][l].merge(K::V, mean, squares);
        }
      });
    }
    for (int i = 0; i < K::width; ++i) merge_lanes(spreads[i], Tile<K>::first_mask);
    tile.each_channel(args, [&](int l, int c, int i) {
      float* partial = tile.partial(args, c);
      partial[0] = spreads[i][l].mean;
      partial[1] = spreads[i][l].squares;
    });
  }
};

// Forward, second: mean and rstd of one row and group, from `work`.
struct Fold {
  static int64_t warps(const NormArgs& args) { return static_cast<int64_t>(args.rows) * args.groups; }

  DEVICE static void warp(const NormArgs& args, int64_t length, int64_t warp) {
    const int64_t row = warp / args.groups, chunks = (args.cells + length - 1) / length;
    const int size = args.channels / args.groups, first = static_cast<int>(warp % args.groups) * size;
    Lanes<Spread> spread;
    FOR_LANES(l) {
      spread[l] = {0.0f, 0.0f, 0.0f};
      for (int64_t i = l; i < chunks * size; i += 32) {
        const int64_t chunk = i / size, left = args.cells - chunk * length;
        const float* partial = args.work + 2 * ((row * chunks + chunk) * args.channels + first + i % size);
        spread[l].merge(static_cast<float>(left < length ? left : length), partial[0], partial[1]);
      }
    }
    merge_lanes(spread, 1);
    FOR_LANES(l) {
      if (l == 0) {
        args.mean[warp] = spread[l].mean;
        args.rstd[warp] = 1.0f / sqrtf(spread[l].squares / spread[l].count + args.eps);
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
