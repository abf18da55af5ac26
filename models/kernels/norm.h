// What the normalisation kernels take and compute. No torch, and no CUDA where STEERDIFF_EMULATED is defined.
#pragma once
#include <cstdint>

#include "attention.h"  // DType

namespace steerdiff {

// Group normalisation, scale and shift by row and channel, and SiLU, of x [rows, channels, cells]:
//
//   u = ((x - mean) * rstd * weight + bias) * (1 + scale) + shift,   y = u * sigmoid(u) with act, else u
//
// with mean and 1 / sqrt(variance + eps) over each group of channels / groups channels of a row. Arithmetic and
// statistics are float32 whatever is stored. x, y, dy and dx are contiguous, either [rows, channels, cells] or, with
// channels_last, [rows, cells, channels]. Nothing is added in an order that depends on timing or on the device:
// equal arguments (and equal alignment of their pointers to 16 bytes) give equal bits.
struct NormArgs {
  const void* x;
  void* y;                      // of norm_forward; may be x
  const void* dy;               // of norm_backward
  void* dx;                     // of norm_backward; may be dy or x; null where not wanted
  const void *weight, *bias;    // [channels] of param_dtype
  const void *scale, *shift;    // [rows, channels] of dtype, contiguous channels; null for none
  int64_t scale_stride, shift_stride;  // by row, in elements
  float *mean, *rstd;           // [rows, groups]; norm_forward writes them, norm_backward reads them
  float* work;                  // norm_work(args) numbers, overwritten by both
  float *d_weight, *d_bias;     // [channels], of norm_backward; null where not wanted
  float *d_scale, *d_shift;     // [rows, channels], of norm_backward; null where not wanted
  int rows, channels, groups;   // all above 0, channels a multiple of groups
  int64_t cells;                // above 0
  float eps;
  bool channels_last, act;
  DType dtype, param_dtype;     // of x, y, dy, dx, scale, shift; of weight, bias
};

// How many cells of one row a warp takes. It depends on shape, layout and dtype alone.
inline int64_t norm_chunk(const NormArgs& args) {
  const int64_t most = args.channels_last ? 1024 : 8192, least = args.channels_last ? 64 : 512, warps = 4096;
  const int64_t width = args.dtype == DType::float32 ? 16 : 32;  // channels of a warp, channels last
  const int64_t columns = args.rows * (args.channels_last ? (args.channels + width - 1) / width : args.channels);
  int64_t length = most;
  while (length > least && columns * ((args.cells + length - 1) / length) < warps) length /= 2;
  return length;
}

// How many floats `work` holds: two by row, chunk and channel, by row and channel, and by row and group.
inline int64_t norm_work(const NormArgs& args) {
  const int64_t length = norm_chunk(args), chunks = (args.cells + length - 1) / length;
  return 2 * args.rows * ((chunks + 1) * args.channels + args.groups);
}

}  // namespace steerdiff

#ifndef STEERDIFF_EMULATED
#include <cuda_runtime_api.h>

namespace steerdiff {

// Both return cudaErrorInvalidValue for what is outside the limits above, before anything is launched.
cudaError_t norm_forward(const NormArgs& args, cudaStream_t stream);
cudaError_t norm_backward(const NormArgs& args, cudaStream_t stream);

}  // namespace steerdiff
#endif
