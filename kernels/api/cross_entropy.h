// Cross-entropy of next-token logits, with its gradient in the same pass.
#pragma once

#include <span>

#include "tensor/context.h"

namespace degu {

// loss_T[t] = logsumexp_v(logit_TV[t]) - logit_TV[t, target]   nats, fp32; 0 where target_T[t] < 0
// dlogit_TV[t, v] = scale * (softmax(logit)[v] - [v == target])   bf16 or fp32; 0 where target_T[t]
// < 0;
//                   null view: not wanted; may be logit_TV when that is fp32
// logit_TV is fp32 ([T, V]): one chunk of rows, so that the logits of a whole batch never exist at
// once. z_loss > 0 adds z_loss * logsumexp^2 to the loss and its gradient.
void cross_entropy(Context& context, AnyView logit_TV, std::span<const int32_t> target_T,
                   float scale, float z_loss, AnyView loss_T, AnyView dlogit_TV);

}  // namespace degu
