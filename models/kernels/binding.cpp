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
#include "norm.h"

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

// What both passes of the normalisation take. The tensors that the arguments point into are kept alive here.
struct Normalisation {
  steerdiff::NormArgs args{};
  at::MemoryFormat order;
  Tensor x, weight, bias, scale, shift, work;

  Normalisation(const Tensor& x_, const Tensor& weight_, const Tensor& bias_, const optional<Tensor>& scale_,
                const optional<Tensor>& shift_, int64_t groups, bool act) {
    TORCH_CHECK(x_.dim() >= 2, "x is ", x_.sizes(), "; it must be [rows, channels, ...]");
    const auto channels = x_.size(1);
    TORCH_CHECK(groups > 0 && channels % groups == 0, channels, " channels do not form ", groups, " groups");
    const bool last = x_.dim() == 4 && !x_.is_contiguous() && x_.is_contiguous(at::MemoryFormat::ChannelsLast);
    order = last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    x = x_.contiguous(order);
    weight = parameter(weight_, channels, weight_.scalar_type(), "weight");
    bias = parameter(bias_, channels, weight_.scalar_type(), "bias");
    TORCH_CHECK(scale_.has_value() == shift_.has_value(), "scale and shift come together");
    if (scale_) {
      scale = by_channel(*scale_, args.scale_stride, "scale");
      shift = by_channel(*shift_, args.shift_stride, "shift");
      args.scale = scale.const_data_ptr();
      args.shift = shift.const_data_ptr();
    }
    args.x = x.const_data_ptr();
    args.weight = weight.const_data_ptr();
    args.bias = bias.const_data_ptr();
    args.rows = static_cast<int>(x.size(0));
    args.channels = static_cast<int>(channels);
    args.groups = static_cast<int>(groups);
    args.cells = x.numel() == 0 ? 0 : x.numel() / (x.size(0) * channels);
    args.channels_last = last;
    args.act = act;
    args.dtype = dtype_of(x);
    args.param_dtype = dtype_of(weight);
    if (empty()) return;
    work = at::empty({steerdiff::norm_work(args)}, wide());
    args.work = work.mutable_data_ptr<float>();
  }

  Tensor parameter(const Tensor& given, int64_t channels, at::ScalarType type, const char* name) const {
    TORCH_CHECK(given.device() == x.device() && given.dim() == 1 && given.size(0) == channels, name, " is ",
                given.sizes(), " on ", given.device(), "; it must be [", channels, "] on ", x.device());
    return given.to(type).contiguous();
  }

  Tensor by_channel(const Tensor& given, int64_t& stride, const char* name) const {
    TORCH_CHECK(given.device() == x.device() && given.numel() == x.size(0) * x.size(1), name, " is ", given.sizes(),
                " on ", given.device(), "; it must be [", x.size(0), ", ", x.size(1), "] on ", x.device());
    auto flat = given.to(x.scalar_type()).reshape({x.size(0), x.size(1)});  // halves of one tensor stay in place
    if (flat.stride(1) != 1) flat = flat.contiguous();
    stride = flat.stride(0);
    return flat;
  }

  at::TensorOptions wide() const { return x.options().dtype(at::kFloat); }
  bool empty() const { return x.numel() == 0; }
};

std::tuple<Tensor, Tensor, Tensor> norm_silu(const Tensor& x, const Tensor& weight, const Tensor& bias,
                                             const optional<Tensor>& scale, const optional<Tensor>& shift,
                                             int64_t groups, double eps, bool act) {
  const c10::cuda::CUDAGuard guard(x.device());
  Normalisation call(x, weight, bias, scale, shift, groups, act);
  const auto out = at::empty_like(call.x, call.x.options(), call.order);
  const auto mean = at::empty({call.x.size(0), groups}, call.wide()), rstd = at::empty_like(mean);
  call.args.y = out.mutable_data_ptr();
  call.args.mean = mean.mutable_data_ptr<float>();
  call.args.rstd = rstd.mutable_data_ptr<float>();
  call.args.eps = static_cast<float>(eps);
  if (!call.empty()) C10_CUDA_CHECK(steerdiff::norm_forward(call.args, c10::cuda::getCurrentCUDAStream()));
  return {out, mean, rstd};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> norm_silu_backward(
    const Tensor& grad, const Tensor& x, const Tensor& weight, const Tensor& bias, const optional<Tensor>& scale,
    const optional<Tensor>& shift, const Tensor& mean, const Tensor& rstd, bool act, bool parameters) {
  const c10::cuda::CUDAGuard guard(x.device());
  Normalisation call(x, weight, bias, scale, shift, mean.size(1), act);
  TORCH_CHECK(grad.sizes() == x.sizes() && grad.device() == x.device(), "grad is ", grad.sizes(), " on ",
              grad.device(), ", and x is ", x.sizes(), " on ", x.device());
  const auto dy = grad.to(x.scalar_type()).contiguous(call.order), means = mean.contiguous(), rstds = rstd.contiguous();
  const auto dx = at::empty_like(call.x, call.x.options(), call.order);
  const auto vector = [&](bool wanted, at::IntArrayRef sizes) {
    return wanted ? at::zeros(sizes, call.wide()) : at::empty({0}, call.wide());  // outputs share no memory
  };
  const auto by_row = {call.x.size(0), call.x.size(1)}, by_channel = {call.x.size(1)};
  const auto d_weight = vector(parameters, by_channel), d_bias = vector(parameters, by_channel);
  const auto d_scale = vector(scale.has_value(), by_row), d_shift = vector(scale.has_value(), by_row);
  const auto pointer = [](const Tensor& tensor) { return tensor.numel() ? tensor.mutable_data_ptr<float>() : nullptr; };
  call.args.dy = dy.const_data_ptr();
  call.args.dx = dx.mutable_data_ptr();
  call.args.mean = means.mutable_data_ptr<float>();
  call.args.rstd = rstds.mutable_data_ptr<float>();
  call.args.d_weight = pointer(d_weight);
  call.args.d_bias = pointer(d_bias);
  call.args.d_scale = pointer(d_scale);
  call.args.d_shift = pointer(d_shift);
  if (!call.empty()) C10_CUDA_CHECK(steerdiff::norm_backward(call.args, c10::cuda::getCurrentCUDAStream()));
  const auto as = [](const Tensor& wide, const optional<Tensor>& own) {
    return own ? wide.to(own->scalar_type()).reshape(own->sizes()) : wide;
  };
  const auto of_parameter = [&](const Tensor& wide, const Tensor& own) { return wide.to(own.scalar_type()); };
  return {dx, of_parameter(d_weight, weight), of_parameter(d_bias, bias), as(d_scale, scale), as(d_shift, shift)};
}

}  // namespace

TORCH_LIBRARY(steerdiff_kernels, library) {
  library.def(
      "edited_attention(Tensor q, Tensor k, Tensor v, Tensor taken, Tensor removed, Tensor? mask, Tensor? words_taken, "
      "Tensor? words_left, int[] source, int[] target) -> (Tensor, Tensor)");
  library.def(
      "led_attention(Tensor q, Tensor k, Tensor v, Tensor? mask, int[] source, int[] target) -> Tensor");
  library.def(
      "norm_silu(Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, int groups, float eps, bool act) "
      "-> (Tensor, Tensor, Tensor)");
  library.def(
      "norm_silu_backward(Tensor grad, Tensor x, Tensor weight, Tensor bias, Tensor? scale, Tensor? shift, "
      "Tensor mean, Tensor rstd, bool act, bool parameters) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(steerdiff_kernels, CUDA, library) {
  library.impl("edited_attention", &edited_attention);
  library.impl("led_attention", &led_attention);
  library.impl("norm_silu", &norm_silu);
  library.impl("norm_silu_backward", &norm_silu_backward);
}
