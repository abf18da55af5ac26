// The kernels as PyTorch operators on CUDA tensors. What they mean, their shapes for tracing and their gradients stand
// in ops.py, which also decides whether a call comes here.
#include <ATen/ATen.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "attention.h"

namespace {

using at::IntArrayRef;
using at::Tensor;
using std::optional;

steerdiff::DType dtype_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf:
      return steerdiff::DType::half;
    case at::kBFloat16:
      return steerdiff::DType::bfloat16;
    case at::kFloat:
      return steerdiff::DType::float32;
    default:
      TORCH_CHECK(false, "the kernels take float32, bfloat16 and float16, not ", tensor.scalar_type());
  }
}

// Returns [rows, heads, tokens, d] with contiguous d: the same tensor unless it has to be copied.
Tensor readable(const Tensor& tensor, const Tensor& like, const char* name) {
  TORCH_CHECK(tensor.dim() == 4, name, " is ", tensor.sizes(), "; it must be [rows, heads, tokens, d]");
  TORCH_CHECK(tensor.device() == like.device(), name, " is on ", tensor.device(), ", and q is on ", like.device());
  TORCH_CHECK(tensor.scalar_type() == like.scalar_type(), name, " is ", tensor.scalar_type(), ", and q is ",
              like.scalar_type());
  TORCH_CHECK(tensor.size(1) == like.size(1) && tensor.size(3) == like.size(3), name, " is ", tensor.sizes(),
              ", and q is ", like.sizes(), "; heads and d must be the same");
  return tensor.stride(3) == 1 ? tensor : tensor.contiguous();
}

void set_strides(int64_t (&strides)[3], const Tensor& tensor) {
  for (int axis = 0; axis < 3; ++axis) strides[axis] = tensor.stride(axis);
}

// What both kernels take. The tensors that the arguments point into are kept alive here.
struct Call {
  steerdiff::AttentionArgs args{};
  Tensor q, k, v, mask, out;

  Call(const Tensor& q_, const Tensor& k_, const Tensor& v_, const optional<Tensor>& mask_)
      : q(readable(q_, q_, "q")), k(readable(k_, q_, "k")), v(readable(v_, q_, "v")) {
    TORCH_CHECK(q.size(0) <= steerdiff::max_rows, "the batch has ", q.size(0), " rows; give at most ",
                steerdiff::max_rows);
    TORCH_CHECK(k.size(0) == q.size(0) && v.size(0) == q.size(0) && k.size(2) == v.size(2), "q is ", q.sizes(),
                ", k is ", k.sizes(), " and v is ", v.sizes(), "; they do not fit");
    // [rows, n, heads, d] in memory, so that joining the heads afterwards copies nothing
    out = at::empty({q.size(0), q.size(2), q.size(1), q.size(3)}, q.options()).transpose(1, 2);
    args.q = q.const_data_ptr();
    args.k = k.const_data_ptr();
    args.v = v.const_data_ptr();
    args.out = out.mutable_data_ptr();
    set_strides(args.q_stride, q);
    set_strides(args.k_stride, k);
    set_strides(args.v_stride, v);
    set_strides(args.out_stride, out);
    args.rows = static_cast<int>(q.size(0));
    args.heads = static_cast<int>(q.size(1));
    args.n = static_cast<int>(q.size(2));
    args.m = static_cast<int>(k.size(2));
    args.d = static_cast<int>(q.size(3));
    args.scale = 1.0f / std::sqrt(static_cast<float>(args.d));
    args.dtype = dtype_of(q);
    if (mask_) set_mask(*mask_);
    for (int row = 0; row < steerdiff::max_rows; ++row) args.lead[row] = args.edit[row] = -1;
  }

  void set_mask(const Tensor& given) {
    TORCH_CHECK(given.scalar_type() == at::kBool && given.device() == q.device(), "mask is ", given.scalar_type(),
                " on ", given.device(), "; it must be bool on ", q.device());
    TORCH_CHECK(given.numel() == given.size(0) * args.m && (given.size(0) == 1 || given.size(0) == args.rows),
                "mask is ", given.sizes(), "; it must be [1 or ", args.rows, ", 1, 1, ", args.m, "]");
    mask = given.reshape({given.size(0), args.m}).contiguous();
    args.mask = mask.const_data_ptr<bool>();
    args.mask_stride = mask.size(0) == 1 ? 0 : mask.stride(0);
  }

  void set_rows(IntArrayRef source, IntArrayRef target) {
    TORCH_CHECK(source.size() == target.size(), source.size(), " source rows and ", target.size(), " target rows");
    for (size_t index = 0; index < target.size(); ++index) {
      const auto from = source[index], to = target[index];
      TORCH_CHECK(from >= 0 && from < args.rows && to >= 0 && to < args.rows, "rows ", from, " and ", to,
                  " are not both among ", args.rows);
      args.lead[to] = static_cast<int>(from);
      args.edit[to] = static_cast<int>(index);
    }
  }

  bool empty() const { return out.numel() == 0; }
};

Tensor words_of(const Tensor& words, const Call& call) {
  TORCH_CHECK(words.dim() == 3 && words.size(0) <= call.args.rows && words.size(2) == call.args.m, "words are ",
              words.sizes(), "; they must be [at most ", call.args.rows, ", words, ", call.args.m, "]");
  TORCH_CHECK(words.scalar_type() == at::kFloat && words.device() == call.q.device(), "words are ",
              words.scalar_type(), " on ", words.device(), "; they must be float32 on ", call.q.device());
  return words.contiguous();
}

// Target rows: P_target v + P_source taken - P_target removed, which the kernel does as P_source taken + P_target left.
std::tuple<Tensor, Tensor> edited_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& taken,
                                            const Tensor& removed, const optional<Tensor>& mask,
                                            const optional<Tensor>& words_taken, const optional<Tensor>& words_left,
                                            IntArrayRef source, IntArrayRef target) {
  const c10::cuda::CUDAGuard guard(q.device());
  Call call(q, k, v, mask);
  call.set_rows(source, target);
  Tensor moved, left;
  if (!target.empty()) {
    const auto edits = static_cast<int64_t>(target.size());
    moved = readable(taken, call.q, "taken");
    TORCH_CHECK(moved.size(0) == edits && moved.size(2) == call.args.m && removed.sizes() == taken.sizes(),
                "taken is ", taken.sizes(), " and removed is ", removed.sizes(), "; they must be [", edits,
                ", heads, ", call.args.m, ", d]");
    std::vector<Tensor> own;
    for (const auto row : target) own.push_back(v.select(0, row));
    left = readable(at::stack(own) - removed, call.q, "removed");
    call.args.taken = moved.const_data_ptr();
    call.args.left = left.const_data_ptr();
    set_strides(call.args.taken_stride, moved);
    set_strides(call.args.left_stride, left);
  }
  const auto wide = call.q.options().dtype(at::kFloat);
  Tensor sums = at::zeros({0, 0, call.q.size(2)}, wide), by_head, first, second;
  if (words_taken && words_left) {
    first = words_of(*words_taken, call);
    second = words_of(*words_left, call);
    TORCH_CHECK(first.sizes() == second.sizes(), "words are ", first.sizes(), " and ", second.sizes());
    by_head = at::empty({first.size(0), call.args.heads, first.size(1), call.args.n}, wide);
    call.args.words_taken = first.const_data_ptr<float>();
    call.args.words_left = second.const_data_ptr<float>();
    call.args.sums = by_head.mutable_data_ptr<float>();
    call.args.word_rows = static_cast<int>(first.size(0));
    call.args.words = static_cast<int>(first.size(1));
  }
  if (!call.empty()) C10_CUDA_CHECK(steerdiff::edited_attention(call.args, c10::cuda::getCurrentCUDAStream()));
  if (by_head.defined()) sums = by_head.mean(1);
  return {call.out, sums};
}

Tensor led_attention(const Tensor& q, const Tensor& k, const Tensor& v, const optional<Tensor>& mask,
                     IntArrayRef source, IntArrayRef target) {
  const c10::cuda::CUDAGuard guard(q.device());
  Call call(q, k, v, mask);
  call.set_rows(source, target);
  if (!call.empty()) C10_CUDA_CHECK(steerdiff::led_attention(call.args, c10::cuda::getCurrentCUDAStream()));
  return call.out;
}

}  // namespace

TORCH_LIBRARY(steerdiff_kernels, library) {
  library.def(
      "edited_attention(Tensor q, Tensor k, Tensor v, Tensor taken, Tensor removed, Tensor? mask, Tensor? words_taken, "
      "Tensor? words_left, int[] source, int[] target) -> (Tensor, Tensor)");
  library.def(
      "led_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, int[] source, int[] target) -> Tensor");
}

TORCH_LIBRARY_IMPL(steerdiff_kernels, CUDA, library) {
  library.impl("edited_attention", &edited_attention);
  library.impl("led_attention", &led_attention);
}
