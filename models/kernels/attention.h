// What the attention kernels take and compute. No torch, and no CUDA where STEERDIFF_EMULATED is defined.
#pragma once
#include <cstdint>

namespace steerdiff {

enum class DType : int { half = 0, bfloat16 = 1, float32 = 2 };

constexpr int max_rows = 64;      // rows of a batch in one launch
constexpr int max_head = 160;     // head sizes are multiples of 8 from 32 (8 works too, padded to 32) to this
constexpr int max_keys = 128;     // keys of edited_attention; led_attention takes any number

// Tensors are [row, head, token, d] in any order of memory as long as d is contiguous; strides count elements and are
// given for row, head, token. With P_b = softmax(scale * q_b k_b^T), masked by row b of the mask:
//
//   edited_attention, edit[b] <  0:  out_b = P_b v_b
//                     edit[b] >= 0:  out_b = P_lead[b] taken[edit[b]] + P_b left[edit[b]]
//   led_attention,    lead[b] <  0:  out_b = P_b v_b
//                     lead[b] >= 0:  out_b = P_lead[b] v_b
//
// A query that may see no key gets zeros, as scaled_dot_product_attention gives.
//
// Word sums, in edited_attention where sums is given: for each of the first word_rows rows of the batch, for each head,
//
//   edit[b] <  0:  sums[b, head, word, :] = P_b words_left[b, word]
//   edit[b] >= 0:  sums[b, head, word, :] = P_lead[b] words_taken[b, word] + P_b words_left[b, word]
struct AttentionArgs {
  const void *q, *k, *v;         // [rows, heads, n or m, d]
  const void *taken, *left;      // [edits, heads, m, d]; null without edits
  void* out;                     // [rows, heads, n, d]
  int64_t q_stride[3], k_stride[3], v_stride[3], taken_stride[3], left_stride[3], out_stride[3];
  const bool* mask;              // [rows or 1, m] with contiguous keys, true where a key may be seen; null for all
  int64_t mask_stride;           // by row; 0 where all rows share one
  int rows, heads, n, m, d;      // n queries and m keys of head size d
  float scale;                   // of the scores, above 0
  int lead[max_rows];            // for each row the row whose q and k (and mask) it takes, -1 its own
  int edit[max_rows];            // for each row its index into taken and left, -1 where it is not edited
  const float *words_taken;      // [word_rows, words, m]; read for edited rows only
  const float *words_left;       // [word_rows, words, m]
  float* sums;                   // [word_rows, heads, words, n], every number is written; null without word sums
  int word_rows, words;
  DType dtype;                   // of q, k, v, taken, left and out
};

}  // namespace steerdiff

#ifndef STEERDIFF_EMULATED
#include <cuda_runtime_api.h>

namespace steerdiff {

// Both return cudaErrorInvalidValue for what is outside the limits above, before anything is launched.
cudaError_t edited_attention(const AttentionArgs& args, cudaStream_t stream);
cudaError_t led_attention(const AttentionArgs& args, cudaStream_t stream);

}  // namespace steerdiff
#endif
