// The attention kernels in plain C++ behind a C interface, for tests without a GPU.
#define STEERDIFF_EMULATED
#include "attention.cuh"

namespace steerdiff {
namespace {

// Every block of a launch, one after the other; shared memory starts as NaN, so that what was not written shows.
struct EditedRun {
  const AttentionArgs& args;
  int limit;
  bool backwards;

  template <class T, int D>
  int run() {
    if (args.m > max_keys) return 1;
    const Plan plan = edited_plan(args, D, limit);
    if (plan.warps == 0) return 1;
    return blocks(plan, [&](void* memory, Place at) { edited_block<T, D>(args, plan, memory, at); });
  }

  template <class F>
  int blocks(const Plan& plan, F&& kernel) {
    const int tiles = (args.n + plan.warps * warp_queries - 1) / (plan.warps * warp_queries);
    std::vector<Chunk<float>> memory((plan.bytes + 15) / 16);
    for (int row = 0; row < args.rows; ++row)
      for (int head = 0; head < args.heads; ++head)
        for (int tile = 0; tile < tiles; ++tile) {
          std::memset(memory.data(), 0xff, memory.size() * 16);
          Block block(plan.warps);
          block.run([&] { kernel(memory.data(), Place{tile, head, row}); }, backwards);
        }
    return 0;
  }
};

}  // namespace
}  // namespace steerdiff

// Both return 0, or 1 for what is outside the limits; `limit` is the bytes of shared memory a block may have.
extern "C" int emulated_edited_attention(const steerdiff::AttentionArgs* args, int limit, int backwards) {
  if (!steerdiff::supported(*args)) return 1;
  return steerdiff::with_types(*args, steerdiff::EditedRun{*args, limit, backwards != 0});
}
