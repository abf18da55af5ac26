// The attention kernels in plain C++ behind a C interface, for tests without a GPU.
#define STEERDIFF_EMULATED
#include "attention.cuh"

namespace steerdiff {
namespace {

// Every block of a launch, one after the other; shared memory starts as NaN, so that what was not written shows.
struct Run {
  const AttentionArgs& args;
  bool led;
  int limit;
  bool backwards;

  template <class T, int D>
  int run() {
    const Plan plan = led ? led_plan(args, D, limit) : edited_plan(args, D, limit);
    if (plan.warps == 0) return 1;
    const int tiles = (args.n + plan.warps * warp_queries - 1) / (plan.warps * warp_queries);
    std::vector<Chunk<float>> memory((plan.bytes + 15) / 16);
    for (int block = 0; block < tiles * args.heads * args.rows; ++block) {
      const Place at{block % tiles, block / tiles % args.heads, block / tiles / args.heads};
      std::memset(memory.data(), 0xff, memory.size() * 16);
      const auto kernel = led ? led_block<T, D> : edited_block<T, D>;
      Block(plan.warps).run([&] { kernel(args, plan, memory.data(), at); }, backwards);
    }
    return 0;
  }
};

int emulated(const AttentionArgs& args, bool led, int limit, int backwards) {
  return supported(args) ? with_types(args, Run{args, led, limit, backwards != 0}) : 1;
}

}  // namespace
}  // namespace steerdiff

// Both return 0, or 1 for what is outside the limits; `limit` is the bytes of shared memory a block may have.
extern "C" int emulated_edited_attention(const steerdiff::AttentionArgs* args, int limit, int backwards) {
  return steerdiff::emulated(*args, false, limit, backwards);
}
extern "C" int emulated_led_attention(const steerdiff::AttentionArgs* args, int limit, int backwards) {
  return steerdiff::emulated(*args, true, limit, backwards);
}
