"""degu's transformer written in plain PyTorch, and transformers' Mixtral of the same shape.

Used by scripts/check_vs_torch.py (agreement of losses and gradients) and train_vs_torch.py (speed).
Parameters carry degu's own tensor names, so a degu checkpoint is this model's state dict.

Letters: B sequences, S sequence length, T = B S tokens, D width, H heads, G key/value heads, A head width,
F expert width, E experts, K experts per token, R = T K routed rows, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class MoeShape:
    experts: int = 0
    top_k: int = 2
    expert_width: int = 0
    shared_experts: int = 0
    first_dense_layers: int = 0
    router: str = "softmax"
    renormalize: bool = True
    gate_scale: float = 1.0
    capacity_factor: float = 0.0


@dataclasses.dataclass(frozen=True)
class Shape:
    """The `model:` map of a degu YAML. `resolved` fills in what degu derives from the rest."""

    vocab: int = 1024
    width: int = 64
    layers: int = 2
    heads: int = 2
    kv_heads: int = 0
    head_width: int = 0
    ffn_width: int = 0
    qk_norm: bool = False
    tied_head: bool = True
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5
    mup_base_width: int = 0
    init_std: float = 0.02
    moe: MoeShape = MoeShape()

    @staticmethod
    def from_config(model: dict[str, Any]) -> Shape:
        """From the model's map in a degu YAML or checkpoint; an unknown field is an error."""
        model = dict(model)
        moe = MoeShape(**model.pop("moe", {}))
        return Shape(**model, moe=moe).resolved()

    def resolved(self) -> Shape:
        ffn_width = self.ffn_width or math.ceil(8 * self.width / 3 / 16) * 16
        expert_width = self.moe.expert_width or ffn_width // self.moe.top_k
        return dataclasses.replace(
            self,
            kv_heads=self.kv_heads or self.heads,
            head_width=self.head_width or self.width // self.heads,
            ffn_width=ffn_width,
            moe=dataclasses.replace(self.moe, expert_width=expert_width),
        )

    def is_moe_layer(self, layer: int) -> bool:
        return self.moe.experts > 0 and layer >= self.moe.first_dense_layers

    def to_config(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class Balance:
    """`train.balance` as far as it enters the loss; group_tokens is T when it is 0."""

    aux_loss: float = 0.0
    z_loss: float = 0.0
    group_tokens: int = 0


def rms_norm(x: Tensor, gain_D: Tensor, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), gain_D.to(x.dtype), eps)


def rotate(x_BHSA: Tensor, cos_SA: Tensor, sin_SA: Tensor) -> Tensor:
    """Rotary embedding, halves convention: dimension i turns with dimension i + A/2."""
    low, high = x_BHSA.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return (x_BHSA * cos_SA + turned * sin_SA).to(x_BHSA.dtype)


def rotary_table(length: int, head_width: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of position * theta^(-2i/A), twice side by side; computed in double as degu does."""
    half = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
    angle = torch.outer(torch.arange(length, dtype=torch.float64), theta**-half)
    angle = torch.cat((angle, angle), dim=-1)
    return angle.cos().float(), angle.sin().float()


class Attention(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        d, h, g, a = shape.width, shape.heads, shape.kv_heads, shape.head_width
        self.wq = nn.Parameter(torch.empty(h * a, d))
        self.wk = nn.Parameter(torch.empty(g * a, d))
        self.wv = nn.Parameter(torch.empty(g * a, d))
        self.wo = nn.Parameter(torch.empty(d, h * a))
        if shape.qk_norm:
            self.q_norm = nn.Parameter(torch.ones(a))
            self.k_norm = nn.Parameter(torch.ones(a))

    def forward(self, x_BSD: Tensor, cos_SA: Tensor, sin_SA: Tensor) -> Tensor:
        shape = self.shape
        batch, length, _ = x_BSD.shape

        def heads(w: Tensor, count: int) -> Tensor:
            return F.linear(x_BSD, w).view(batch, length, count, shape.head_width).transpose(1, 2)

        q = heads(self.wq, shape.heads)
        k = heads(self.wk, shape.kv_heads)
        v = heads(self.wv, shape.kv_heads)
        if shape.qk_norm:
            q = rms_norm(q, self.q_norm, shape.norm_eps)
            k = rms_norm(k, self.k_norm, shape.norm_eps)
        q, k = rotate(q, cos_SA, sin_SA), rotate(k, cos_SA, sin_SA)
        groups = shape.heads // shape.kv_heads
        if groups > 1:  # query head h reads key/value head h // groups
            k, v = k.repeat_interleave(groups, dim=1), v.repeat_interleave(groups, dim=1)
        scale = 1 / shape.head_width if shape.mup_base_width else shape.head_width**-0.5
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
        return F.linear(out.transpose(1, 2).reshape(batch, length, -1), self.wo)


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.empty(hidden, width))
        self.up = nn.Parameter(torch.empty(hidden, width))
        self.down = nn.Parameter(torch.empty(width, hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.silu(F.linear(x, self.gate)) * F.linear(x, self.up), self.down)


class Moe(nn.Module):
    """Routed experts. `experts_kind` is how their matrices are applied:

    plain       for each expert: pick its tokens, apply, add back. Needs no thought; the reference.
    sorted      tokens sorted by expert once, one linear per expert over adjacent rows.
    grouped_mm  tokens sorted by expert, F.grouped_mm over all experts.
    """

    def __init__(self, shape: Shape, experts_kind: str) -> None:
        super().__init__()
        self.shape, self.experts_kind = shape, experts_kind
        moe, d, f = shape.moe, shape.width, shape.moe.expert_width
        if moe.router == "hash" or moe.capacity_factor:
            raise ValueError("the PyTorch model has neither hash routing nor capacity: it cannot stand "
                             "beside a checkpoint with model.moe.router hash or a capacity_factor")
        self.router = nn.Parameter(torch.empty(moe.experts, d))
        self.register_buffer("router_bias", torch.zeros(moe.experts))
        self.gate = nn.Parameter(torch.empty(moe.experts, f, d))
        self.up = nn.Parameter(torch.empty(moe.experts, f, d))
        self.down = nn.Parameter(torch.empty(moe.experts, d, f))
        if moe.shared_experts:
            hidden = f * moe.shared_experts
            self.shared_gate = nn.Parameter(torch.empty(hidden, d))
            self.shared_up = nn.Parameter(torch.empty(hidden, d))
            self.shared_down = nn.Parameter(torch.empty(d, hidden))

    def forward(self, x_TD: Tensor, balance: Balance) -> tuple[Tensor, Tensor]:
        """The block's output and its share of the balancing losses."""
        moe = self.shape.moe
        logits_TE = F.linear(x_TD, self.router).float()
        if self.shape.mup_base_width:
            logits_TE = logits_TE * (self.shape.mup_base_width / self.shape.width)
        scores_TE = logits_TE.softmax(-1) if moe.router == "softmax" else logits_TE.sigmoid()
        experts_TK = (scores_TE.detach() + self.router_bias).topk(moe.top_k, dim=-1).indices
        gates_TK = scores_TE.gather(1, experts_TK)
        if moe.renormalize:
            gates_TK = gates_TK / gates_TK.sum(-1, keepdim=True)
        gates_TK = (gates_TK * moe.gate_scale).to(x_TD.dtype)

        out_TD = getattr(self, f"_{self.experts_kind}")(x_TD, experts_TK, gates_TK)
        if moe.shared_experts:
            hidden = F.silu(F.linear(x_TD, self.shared_gate)) * F.linear(x_TD, self.shared_up)
            out_TD = out_TD + F.linear(hidden, self.shared_down)
        return out_TD, self._balancing(logits_TE, scores_TE, experts_TK, balance)

    def _balancing(self, logits_TE: Tensor, scores_TE: Tensor, experts_TK: Tensor,
                   balance: Balance) -> Tensor:
        """aux_loss * E * mean over groups of sum_e f_e P_e, plus z_loss * mean over tokens of lse^2."""
        total = logits_TE.new_zeros(())
        if balance.aux_loss:
            tokens, experts = scores_TE.shape
            group = balance.group_tokens or tokens
            if self.shape.moe.router == "sigmoid":
                scores_TE = scores_TE / scores_TE.sum(-1, keepdim=True)
            chosen_TE = torch.zeros_like(scores_TE).scatter_(1, experts_TK, 1.0)
            share_gE = chosen_TE.view(-1, group, experts).mean(1) / self.shape.moe.top_k
            mean_gE = scores_TE.view(-1, group, experts).mean(1)
            total = total + balance.aux_loss * experts * (share_gE * mean_gE).sum(-1).mean()
        if balance.z_loss:
            total = total + balance.z_loss * logits_TE.logsumexp(-1).square().mean()
        return total

    def _plain(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor) -> Tensor:
        out_TD = torch.zeros_like(x_TD)
        for e in range(self.shape.moe.experts):
            token, slot = (experts_TK == e).nonzero(as_tuple=True)
            x = x_TD[token]
            y = F.linear(F.silu(F.linear(x, self.gate[e])) * F.linear(x, self.up[e]), self.down[e])
            out_TD = out_TD.index_add(0, token, y * gates_TK[token, slot].unsqueeze(-1))
        return out_TD

    def _order(self, experts_TK: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Routed rows in expert order, each row's place back in slot order, rows per expert."""
        order_R = experts_TK.flatten().argsort(stable=True)
        back_R = torch.empty_like(order_R).scatter_(0, order_R, torch.arange(order_R.numel()))
        # bincount has no fixed output shape, which torch.compile would have to guard
        one_hot = torch.zeros(experts_TK.shape[0], self.shape.moe.experts, dtype=torch.int32)
        return order_R, back_R, one_hot.scatter_(1, experts_TK, 1).sum(0, dtype=torch.int32)

    def _combine(self, y_RD: Tensor, back_R: Tensor, gates_TK: Tensor) -> Tensor:
        y_TKD = y_RD[back_R].view(*gates_TK.shape, -1)
        return (y_TKD * gates_TK.unsqueeze(-1)).sum(1)

    def _sorted(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor) -> Tensor:
        order_R, back_R, counts_E = self._order(experts_TK)
        rows = x_TD[order_R // self.shape.moe.top_k].split(counts_E.tolist())
        y = [F.linear(F.silu(F.linear(x, self.gate[e])) * F.linear(x, self.up[e]), self.down[e])
             for e, x in enumerate(rows)]
        return self._combine(torch.cat(y), back_R, gates_TK)

    def _grouped_mm(self, x_TD: Tensor, experts_TK: Tensor, gates_TK: Tensor) -> Tensor:
        order_R, back_R, counts_E = self._order(experts_TK)
        ends_E = counts_E.cumsum(0, dtype=torch.int32)
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_TD.dtype
        x_RD = x_TD[order_R // self.shape.moe.top_k].to(dtype)

        def grouped(x: Tensor, w: Tensor) -> Tensor:
            return F.grouped_mm(x, w.to(dtype).transpose(1, 2), offs=ends_E)

        hidden = F.silu(grouped(x_RD, self.gate)) * grouped(x_RD, self.up)
        return self._combine(grouped(hidden, self.down), back_R, gates_TK)


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int, experts_kind: str) -> None:
        super().__init__()
        self.eps = shape.norm_eps
        self.attention_norm = nn.Parameter(torch.ones(shape.width))
        self.attention = Attention(shape)
        self.ffn_norm = nn.Parameter(torch.ones(shape.width))
        if shape.is_moe_layer(layer):
            self.moe = Moe(shape, experts_kind)
        else:
            self.ffn = SwiGlu(shape.width, shape.ffn_width)

    def forward(self, x_BSD: Tensor, cos_SA: Tensor, sin_SA: Tensor,
                balance: Balance) -> tuple[Tensor, Tensor | None]:
        x_BSD = x_BSD + self.attention(rms_norm(x_BSD, self.attention_norm, self.eps), cos_SA, sin_SA)
        normed = rms_norm(x_BSD, self.ffn_norm, self.eps)
        if hasattr(self, "ffn"):
            return x_BSD + self.ffn(normed), None
        out_TD, extra = self.moe(normed.flatten(0, 1), balance)
        return x_BSD + out_TD.view_as(x_BSD), extra


class Transformer(nn.Module):
    """degu's decoder. forward(tokens [B, S+1]) -> (cross-entropy, balancing losses)."""

    def __init__(self, shape: Shape, experts_kind: str = "plain", sequence: int = 256) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Parameter(torch.empty(shape.vocab, shape.width))
        self.blocks = nn.ModuleList(Block(shape, i, experts_kind) for i in range(shape.layers))
        self.final_norm = nn.Parameter(torch.ones(shape.width))
        if not shape.tied_head:
            self.head = nn.Parameter(torch.empty(shape.vocab, shape.width))
        cos_SA, sin_SA = rotary_table(sequence, shape.head_width, shape.rope_theta)
        self.register_buffer("cos_SA", cos_SA, persistent=False)
        self.register_buffer("sin_SA", sin_SA, persistent=False)

    def initialise(self, seed: int) -> Transformer:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, self.shape.init_std, generator=generator)
        return self

    def forward(self, tokens_BS1: Tensor, balance: Balance = Balance()) -> tuple[Tensor, Tensor]:
        shape = self.shape
        inputs, targets = tokens_BS1[:, :-1], tokens_BS1[:, 1:]
        length = inputs.shape[1]
        x_BSD = F.embedding(inputs, self.embedding)
        extra = torch.zeros(())
        for block in self.blocks:
            x_BSD, more = block(x_BSD, self.cos_SA[:length], self.sin_SA[:length], balance)
            extra = extra if more is None else extra + more
        x_BSD = rms_norm(x_BSD, self.final_norm, shape.norm_eps)
        logits = F.linear(x_BSD, self.embedding if shape.tied_head else self.head)
        if shape.mup_base_width:
            logits = logits * (shape.mup_base_width / shape.width)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()), extra


def mixtral_mismatch(shape: Shape) -> str:
    """Why transformers' Mixtral cannot hold this model; empty when it can."""
    moe = shape.moe
    reasons = {
        "all blocks must be MoE": moe.experts == 0 or moe.first_dense_layers > 0,
        "no shared experts": moe.shared_experts > 0,
        "softmax scores, renormalised, unscaled":
            moe.router != "softmax" or not moe.renormalize or moe.gate_scale != 1.0,
        "no QK-norm": shape.qk_norm,
        "no muP": shape.mup_base_width > 0,
        "no capacity": moe.capacity_factor > 0,
    }
    return "; ".join(reason for reason, broken in reasons.items() if broken)


def mixtral(shape: Shape, experts_kind: str, sequence: int, aux_loss: float = 0.0) -> nn.Module:
    """transformers' MixtralForCausalLM of this shape; experts_kind: eager or grouped_mm."""
    from transformers import MixtralConfig, MixtralForCausalLM

    if reason := mixtral_mismatch(shape):
        raise ValueError(f"Mixtral differs from this shape: {reason}")
    config = MixtralConfig(
        vocab_size=shape.vocab, hidden_size=shape.width, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads,
        head_dim=shape.head_width, intermediate_size=shape.moe.expert_width,
        num_local_experts=shape.moe.experts, num_experts_per_tok=shape.moe.top_k,
        rms_norm_eps=shape.norm_eps, tie_word_embeddings=shape.tied_head, sliding_window=None,
        max_position_embeddings=sequence, use_cache=False, initializer_range=shape.init_std,
        router_aux_loss_coef=aux_loss, output_router_logits=aux_loss > 0,
        rope_theta=shape.rope_theta, bos_token_id=None, eos_token_id=None, pad_token_id=None,
        attn_implementation="sdpa", experts_implementation=experts_kind)
    return MixtralForCausalLM(config)
