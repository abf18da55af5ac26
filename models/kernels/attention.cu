// The attention kernels and their launches.
#include "attention.cuh"

namespace steerdiff {
namespace {

extern __shared__ __align__(16) unsigned char shared_memory[];

// How many blocks a multiprocessor has registers for at least: 128 for each thread with four, 168 with three, 255 with
// two. Left to itself, the assembler spills some registers where room for one more block is then won.
template <int D>
constexpr int edited_blocks = D <= 96 ? 3 : 2;
template <int D>
constexpr int led_blocks = D <= 80 ? 4 : 3;

template <class T, int D>
__global__ void __launch_bounds__(128, edited_blocks<D>)
    edited_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Plan plan) {
  const Place at{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  edited_block<T, D>(args, plan, shared_memory, at);
}

template <class T, int D>
__global__ void __launch_bounds__(128, led_blocks<D>)
    led_kernel(const __grid_constant__ AttentionArgs args, const __grid_constant__ Plan plan) {
  const Place at{static_cast<int>(blockIdx.x), static_cast<int>(blockIdx.y), static_cast<int>(blockIdx.z)};
  led_block<T, D>(args, plan, shared_memory, at);
}

struct Launch {
  const AttentionArgs& args;
  bool led;
  cudaStream_t stream;

  template <class T, int D>
  cudaError_t run() {
    int device = 0, limit = 0;
    if (const cudaError_t error = cudaGetDevice(&device)) return error;
    if (const cudaError_t error = cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device))
      return error;
    const Plan plan = led ? led_plan(args, D, limit) : edited_plan(args, D, limit);
    if (plan.warps == 0) return cudaErrorInvalidValue;
    const auto kernel = led ? led_kernel<T, D> : edited_kernel<T, D>;
    if (const cudaError_t error =
            cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.bytes))
      return error;
    const int queries = plan.warps * warp_queries;
    kernel<<<dim3((args.n + queries - 1) / queries, args.heads, args.rows), 32 * plan.warps, plan.bytes, stream>>>(
        args, plan);
    return cudaGetLastError();
  }
};

cudaError_t launch(const AttentionArgs& args, bool led, cudaStream_t stream) {
  return supported(args) ? with_types(args, Launch{args, led, stream}) : cudaErrorInvalidValue;
}

}  // namespace

cudaError_t edited_attention(const AttentionArgs& args, cudaStream_t stream) { return launch(args, false, stream); }
cudaError_t led_attention(const AttentionArgs& args, cudaStream_t stream) { return launch(args, true, stream); }

}  // namespace steerdiff
