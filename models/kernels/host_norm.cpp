// The normalisation kernels as C functions, run by the emulation of lanes.cuh: for tests without a GPU.
#define STEERDIFF_EMULATED
#include "norm.cuh"

namespace {

// Run a pass's warps one after another, from the last if backwards: no result may depend on their order.
struct Run {
  const steerdiff::NormArgs& args;
  bool backwards;

  template <class Pass>
  void operator()(Pass) const {
    const int64_t warps = Pass::warps(args), length = steerdiff::norm_chunk(args);
    for (int64_t i = 0; i < warps; ++i) Pass::warp(args, length, backwards ? warps - 1 - i : i);
  }
};

}  // namespace

extern "C" {

int norm_args_size() { return sizeof(steerdiff::NormArgs); }
int64_t norm_work_floats(const steerdiff::NormArgs* args) { return steerdiff::norm_work(*args); }

// These return 0, or 1 for arguments outside the limits of norm.h.
int norm_forward(const steerdiff::NormArgs* args, bool backwards) {
  if (!steerdiff::norm_takes(*args)) return 1;
  steerdiff::norm_forward_passes(*args, Run{*args, backwards});
  return 0;
}
int norm_backward(const steerdiff::NormArgs* args, bool backwards) {
  if (!steerdiff::norm_takes(*args)) return 1;
  steerdiff::norm_backward_passes(*args, Run{*args, backwards});
  return 0;
}

}  // extern "C"
