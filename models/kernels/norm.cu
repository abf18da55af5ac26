// The normalisation kernels on the device.
#include "norm.cuh"

namespace steerdiff {
namespace {

constexpr int block_warps = 4;

template <class Pass>
__global__ void __launch_bounds__(32 * block_warps) run_pass(NormArgs args, int64_t length, int64_t warps) {
  const int64_t warp = static_cast<int64_t>(blockIdx.x) * block_warps + warp_index();
  if (warp < warps) Pass::warp(args, length, warp);
}

// Launch one pass after another, until one cannot be.
struct Launch {
  const NormArgs& args;
  cudaStream_t stream;
  cudaError_t& error;

  template <class Pass>
  void operator()(Pass) const {
    if (error != cudaSuccess) return;
    const int64_t warps = Pass::warps(args);
    if (warps == 0) return;  // not wanted
    const int64_t blocks = (warps + block_warps - 1) / block_warps;
    if (blocks > INT32_MAX) {
      error = cudaErrorInvalidValue;
      return;
    }
    run_pass<Pass><<<static_cast<unsigned>(blocks), 32 * block_warps, 0, stream>>>(args, norm_chunk(args), warps);
    error = cudaGetLastError();
  }
};

}  // namespace

cudaError_t norm_forward(const NormArgs& args, cudaStream_t stream) {
  if (!norm_takes(args)) return cudaErrorInvalidValue;
  cudaError_t error = cudaSuccess;
  norm_forward_passes(args, Launch{args, stream, error});
  return error;
}

cudaError_t norm_backward(const NormArgs& args, cudaStream_t stream) {
  if (!norm_takes(args)) return cudaErrorInvalidValue;
  cudaError_t error = cudaSuccess;
  norm_backward_passes(args, Launch{args, stream, error});
  return error;
}

}  // namespace steerdiff
