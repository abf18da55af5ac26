// The functions of lanes.cuh in plain C++, by the layouts that the PTX manual documents: for tests without a GPU.
//
// A block's warps are coroutines that give way to each other at block_sync alone, in a fixed order, forwards or
// backwards. A missing sync therefore shows: one warp runs on before another has written, or overwrites what another
// has not read. Asynchronous copies arrive as late as their wait allows.
#pragma once
#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <functional>
#include <utility>
#include <vector>

#define DEVICE inline
#define FOR_LANES(l) for (int l = 0; l < 32; ++l)

namespace steerdiff {

template <class T>
struct Lanes {
  T values[32];
  T& operator[](int l) { return values[l]; }
  const T& operator[](int l) const { return values[l]; }
};

// One block of warps that run in turns.
class Block {
 public:
  explicit Block(int warps) : warps_(warps) {}

  // Run `kernel` in every warp to its end, in each turn from the first warp to the last, or from the last if backwards.
  void run(const std::function<void()>& kernel, bool backwards) {
    current = this;
    for (Warp& warp : warps_) {
      warp.ends = false;
      warp.copies.assign(1, {});
      warp.stack.resize(1 << 19);
      getcontext(&warp.context);
      warp.context.uc_stack.ss_sp = warp.stack.data();
      warp.context.uc_stack.ss_size = warp.stack.size();
      warp.context.uc_link = &caller_;
      makecontext(&warp.context, &Block::start, 0);
    }
    kernel_ = &kernel;
    const int count = size();
    while (std::any_of(warps_.begin(), warps_.end(), [](const Warp& warp) { return !warp.ends; })) {
      for (int turn = 0; turn < count; ++turn) {
        index_ = backwards ? count - 1 - turn : turn;
        if (!warps_[index_].ends) swapcontext(&caller_, &warps_[index_].context);
      }
    }
  }

  int index() const { return index_; }
  int size() const { return static_cast<int>(warps_.size()); }
  void yield() { swapcontext(&warps_[index_].context, &caller_); }

  using Copy = std::pair<void*, const void*>;
  std::deque<std::vector<Copy>>& copies() { return warps_[index_].copies; }

  static inline thread_local Block* current = nullptr;

 private:
  struct Warp {
    ucontext_t context;
    std::vector<char> stack;
    std::deque<std::vector<Copy>> copies;  // by groups; the last is open
    bool ends = false;
  };

  static void start() {
    (*current->kernel_)();
    current->warps_[current->index_].ends = true;
  }

  std::vector<Warp> warps_;
  const std::function<void()>* kernel_ = nullptr;
  ucontext_t caller_;
  int index_ = 0;
};

inline int warp_index() { return Block::current->index(); }
inline int warp_count() { return Block::current->size(); }
inline void block_sync() { Block::current->yield(); }
inline void warp_sync() {}

template <class To, class From>
To bits_of(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float to_float(float x) { return x; }
inline float to_float(BFloat16 x) { return bits_of<float>(static_cast<uint32_t>(x.bits) << 16); }
inline float to_float(Half x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000) << 16, magnitude = x.bits & 0x7fff;
  if (magnitude >= 0x7c00) return bits_of<float>(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  const float value = bits_of<float>(magnitude << 13) * 0x1p112f;  // right for denormal numbers too
  return bits_of<float>(sign | bits_of<uint32_t>(value));
}

template <class T>
T from_float(float x);
template <>
inline float from_float<float>(float x) {
  return x;
}
template <>
inline BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bits_of<uint32_t>(x);
  if (x != x) return {static_cast<uint16_t>(bits >> 16 | 0x40)};
  return {static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <>
inline Half from_float<Half>(float x) {
  const uint32_t bits = bits_of<uint32_t>(x), sign = bits >> 16 & 0x8000;
  const float size = std::fabs(x);
  if (x != x) return {static_cast<uint16_t>(sign | 0x7e00)};
  if (size >= 65520.0f) return {static_cast<uint16_t>(sign | 0x7c00)};
  if (size < 0x1p-14f) return {static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(size * 0x1p24f)))};
  const uint32_t rebased = (bits & 0x7fffffff) - (112u << 23);
  return {static_cast<uint16_t>(sign | (rebased + 0xfff + (rebased >> 13 & 1)) >> 13)};
}

inline float exp2_of(float x) { return std::exp2(x); }

inline void copy_async16(void* shared, const void* global) {
  Block::current->copies().back().emplace_back(shared, global);
}
inline void commit_copies() { Block::current->copies().emplace_back(); }
template <int pending>
void wait_copies() {
  auto& groups = Block::current->copies();
  while (groups.size() > pending + 1) {
    for (const auto& [to, from] : groups.front()) std::memcpy(to, from, 16);
    groups.pop_front();
  }
}

template <class T>
Lanes<T> shuffle_xor(Lanes<T> x, int mask) {
  Lanes<T> y;
  FOR_LANES(l) y[l] = x[l ^ mask];
  return y;
}
inline Lanes<float> quad_broadcast(Lanes<float> x, int from) {
  Lanes<float> y;
  FOR_LANES(l) y[l] = x[(l & ~3) | from];
  return y;
}

inline void load_matrices(Lanes<uint32_t> (&to)[4], Lanes<const void*> rows) {
  for (int i = 0; i < 4; ++i) {
    FOR_LANES(l) {
      const auto* row = static_cast<const uint16_t*>(rows[8 * i + l / 4]);
      to[i][l] = row[2 * (l % 4)] | static_cast<uint32_t>(row[2 * (l % 4) + 1]) << 16;
    }
  }
}
inline void load_transposed(Lanes<uint32_t> (&to)[4], Lanes<const void*> rows) {
  for (int i = 0; i < 4; ++i) {
    FOR_LANES(l) {
      const auto* first = static_cast<const uint16_t*>(rows[8 * i + 2 * (l % 4)]);
      const auto* second = static_cast<const uint16_t*>(rows[8 * i + 2 * (l % 4) + 1]);
      to[i][l] = first[l / 4] | static_cast<uint32_t>(second[l / 4]) << 16;
    }
  }
}

template <class T>
void multiply_add(Lanes<float> (&c)[4], const Lanes<uint32_t> (&a)[4], Lanes<uint32_t> b0, Lanes<uint32_t> b1) {
  float left[16][16], right[16][8];
  FOR_LANES(l) {
    const int g = l / 4, t = 2 * (l % 4);
    for (int half = 0; half < 2; ++half) {
      const auto number = [half](uint32_t pair) { return to_float(T{static_cast<uint16_t>(pair >> 16 * half)}); };
      for (int i = 0; i < 4; ++i) left[g + 8 * (i % 2)][t + 8 * (i / 2) + half] = number(a[i][l]);
      right[t + half][g] = number(b0[l]);
      right[t + 8 + half][g] = number(b1[l]);
    }
  }
  float sums[16][8] = {};
  for (int i = 0; i < 16; ++i)
    for (int k = 0; k < 16; ++k)
      for (int j = 0; j < 8; ++j) sums[i][j] += left[i][k] * right[k][j];
  FOR_LANES(l) {
    for (int i = 0; i < 4; ++i) c[i][l] += sums[l / 4 + 8 * (i / 2)][2 * (l % 4) + i % 2];
  }
}

}  // namespace steerdiff
