// The decoder-only transformer: one forward pass for training, evaluation, prefill and decode.
//
//   x = embedding(tokens);  per block: x += attention(norm(x));  x += ffn_or_moe(norm(x));  h =
//   norm(x)
//
// The output matrix and the loss are in nn/head.h: the caller decides which rows want logits.
#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "model/local_kv.h"
#include "model/parameters.h"
#include "moe/layer.h"
#include "nn/attention_layer.h"
#include "nn/feed_forward.h"
#include "nn/recompute.h"
#include "tensor/device.h"

namespace degu {

struct BlockActivations {
  AttentionActivations attention;
  AnyView x_mid_TD;  // after attention
  AnyView inv_T;     // 1 / rms of x_mid
  AnyView h_TD;      // norm(x_mid)
  FeedForwardActivations dense;
  MoeActivations moe;
};

// Everything one pass over at most `tokens` tokens leaves behind. What is not kept lies in memory
// that all blocks share; of each block the chosen experts (moe.router.expert_TK) and what their
// router measured (moe.balance) always outlast the next.
struct Activations {
  Keep keep = Keep::kAll;
  std::vector<AnyView> x_LTD;  // the residual stream before each block, and after the last
  std::vector<BlockActivations> blocks;
  AnyView expert_LTK;  // where blocks share memory: moe.router.expert_TK of those with experts
  AnyView balance_loss_L2G;  // of the blocks with experts: moe.balance.aux_G, z_G
  AnyView balance_load_LE;   // and load_E
  AnyView inv_T;             // of the last norm
  AnyView h_TD;              // what the head reads
};

// What the routers measured in a pass of `groups` balance groups, of each block with experts in
// turn.
class BalanceNumbers {
 public:
  // Adds what lies on the device to `downloads`; the next pass may begin at once.
  BalanceNumbers(Downloads& downloads, const Activations& saved, int64_t groups);
  // Once the downloads are there.
  std::vector<BalanceRecord> records() const;

 private:
  struct Layer {
    int64_t dropped;
    int64_t extra_rounds;
  };
  AnyView loss_L2G_, load_LE_;
  int64_t groups_;
  std::vector<Layer> layers_;
};
// The same when nothing else is waited for: on an accelerator the host waits here.
std::vector<BalanceRecord> balance_records(Context& context, const Activations& saved,
                                           int64_t groups);

// Told by a backward pass around what writes the gradients of each block's parameters (block_of in
// model/parameters.h), from the last block to the first and then kNoBlock, the embedding's look-up:
// so that gradients can be laid out before, and taken away after, block by block.
class BlockSink {
 public:
  virtual ~BlockSink() = default;
  virtual void begin_block(int block) = 0;
  virtual void end_block(int block) = 0;
};

class Transformer {
 public:
  explicit Transformer(ParameterSet& parameters, const ExpertSpread& spread = {});

  const ModelShape& shape() const { return shape_; }
  // muP's factor on the logits.
  float logit_multiplier() const;
  // Between passes: ExpertSpread::chunks of all layers from now on.
  void set_exchange_chunks(int64_t chunks);

  // For passes of at most so many tokens and balance groups; 0 groups: nothing is measured of the
  // balance, and its losses have no gradient.
  Activations take(Arena& arena, int64_t tokens, int64_t balance_groups, Keep keep) const;

  // Leaves h_TD in `saved`. Collective over the expert group. Without `groups.units` being more
  // than one unit the pass is the same; groups matter to the balancing losses, capacity and
  // gradients only.
  void forward(Context& context, const Batch& batch, const TokenGroups& groups,
               const BalanceWeights& weights, Activations& saved) const;
  // One block of it: from the rows of saved.x_LTD[layer] to those of saved.x_LTD[layer + 1].
  void forward_block(Context& context, size_t layer, const Batch& batch, const TokenGroups& groups,
                     const BalanceWeights& weights, Activations& saved) const;

  // From dh_TD (overwritten) to the gradient of every weight but the head's. Computes again what
  // the pass did not keep. `sink`: null when gradients have their places already. ShapeError after
  // a pass that kept nothing.
  void backward(Context& context, const Batch& batch, const TokenGroups& groups,
                const BalanceWeights& weights, Activations& saved, AnyView dh_TD,
                BlockSink* sink = nullptr) const;

 private:
  int64_t moe_layers() const;
  // dx becomes the gradient of saved.x_LTD[layer]; dh: memory of the same size.
  void backward_block(Context& context, size_t layer, const Batch& batch, const TokenGroups& groups,
                      const BalanceWeights& weights, Activations& saved, AnyView dx,
                      AnyView dh) const;
  void take_blocks(Arena& arena, DType type, int64_t tokens, Activations& saved) const;
  void take_balance(Arena& arena, int64_t groups, Activations& saved) const;

  struct Block {
    AttentionLayer attention;
    Parameter* ffn_norm;
    std::optional<FeedForward> dense;
    std::unique_ptr<MoeLayer> moe;
  };

  ModelShape shape_;
  ParameterSet& parameters_;
  std::vector<Block> blocks_;
};

}  // namespace degu
