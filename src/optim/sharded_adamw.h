// AdamW whose moments are spread over the ranks that hold the same parameters (ZeRO stage 1:
// Rajbhandari et al. 2020, arXiv 1910.02054). Each rank updates its shard of the fp32 values; the
// caller gathers them.
#pragma once

#include <span>

#include "kernels/api/adamw.h"
#include "optim/flat_layout.h"
#include "tensor/tensor.h"

namespace degu {

class ShardedAdamW {
 public:
  // `moments`: fp32, or bf16, which is rounded with the random numbers of (seed, the member's name,
  // step, the element's index in the whole tensor): the same bits on every layout.
  ShardedAdamW(FlatLayout layout, int rank, DeviceType device, DType moments = DType::kF32,
               uint64_t seed = 0);

  const FlatLayout& layout() const { return layout_; }
  FlatRange range() const { return layout_.shard(rank_); }
  AnyView m() const { return m_; }  // this shard's
  AnyView v() const { return v_; }

  // The square sums of this shard's blocks to their places among all blocks of the layout.
  void square_sums(Context& context, AnyView grad_shard, AnyView all_blocks) const;
  // `values`: the whole flat vector, of which this shard's range is updated; `scale` as adamw's.
  void step(Context& context, const AdamWStep& hyper, AnyView scale, AnyView values,
            AnyView grad_shard);

 private:
  FlatLayout layout_;
  int rank_;
  uint64_t seed_;
  Tensor m_;
  Tensor v_;
};

}  // namespace degu
