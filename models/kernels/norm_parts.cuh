// The parts of norm.cuh: what of the numbers a warp takes, their loads and stores, and merged means and squares.
//
// Passes over numbers go by tiles: a row, some channels and a chunk of cells.
#pragma once
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
    const int64_t apart = K::channels_last ? args.channels : 1;  // elements from a cell to the next
    const int64_t first = K::channels_last ? row * args.cells * args.channels + channel_of(l)
                                           : (static_cast<int64_t>(row) * args.channels + channel) * args.cells;
    const int64_t cell = begin + (K::channels_last ? l / 4 : l * K::V), step = K::channels_last ? 8 : 32 * K::V;
    for (int64_t i = first + cell * apart; i < first + end * apart; i += step * apart) f(i);
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

// How many numbers each of N series has, their means and sums of squared distances from these; `merge` as Chan, Golub
// and LeVeque 1979.
template <int N>
struct Spread {
  float count, mean[N], squares[N];

  DEVICE void merge(const Spread& other) {
    if (other.count == 0.0f) return;
    const float total = count + other.count, share = other.count / total;
    for (int i = 0; i < N; ++i) {
      const float apart = other.mean[i] - mean[i];
      mean[i] += apart * share;
      squares[i] += other.squares[i] + apart * apart * count * share;
    }
    count = total;
  }
};

// Merge over all lanes whose numbers differ in a bit of `mask` or above; the lowest of them has the whole.
template <int N>
DEVICE void merge_lanes(Lanes<Spread<N>>& spread, int mask) {
  for (; mask < 32; mask *= 2) {
    Lanes<Spread<N>> other;
    const auto shuffle = [&](auto member) {
      Lanes<float> x;
      FOR_LANES(l) x[l] = member(spread[l]);
      x = shuffle_xor(x, mask);
      FOR_LANES(l) member(other[l]) = x[l];
    };
    shuffle([](Spread<N>& of) -> float& { return of.count; });
    for (int i = 0; i < N; ++i) {
      shuffle([i](Spread<N>& of) -> float& { return of.mean[i]; });
      shuffle([i](Spread<N>& of) -> float& { return of.squares[i]; });
    }
    FOR_LANES(l) spread[l].merge(other[l]);
  }
}

}  // namespace steerdiff
