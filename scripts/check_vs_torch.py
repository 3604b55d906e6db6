#!/usr/bin/env python3
"""Does degu compute what PyTorch computes? Loss and every parameter's gradient, side by side, in fp32.

  $(scripts/torch_venv.sh | tail -n 1) scripts/check_vs_torch.py                 makes three small models, checks them
  $(scripts/torch_venv.sh | tail -n 1) scripts/check_vs_torch.py runs/mine       checks a checkpoint trained in fp32

degu's side is `degu eval CHECKPOINT --tokens FILE --gradients FILE`; PyTorch's is the same checkpoint, read from
its HDF5 files, in
  plain     the model of scripts/bench/torch_models.py, with the balancing losses
  mixtral   transformers' MixtralForCausalLM, where the shape allows it and no balancing loss is in the way
Exit code 1 when the loss differs by more than --loss-bar (relative) or a gradient by more than
--gradient-bar (norm of the difference over norm of PyTorch's gradient).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "scripts" / "bench")]

from degu_checkpoint import Checkpoint  # noqa: E402  (after the path is set)
from degu_command import find_degu, prepare_random_text, run_degu  # noqa: E402
from torch_models import Balance, Shape, Transformer, mixtral, mixtral_mismatch  # noqa: E402

# Models that between them use every part of the block. `made` is deliberately awkward: grouped-query
# attention, QK-norm, a dense block below MoE ones, a shared expert, an odd head, muP.
MADE_MODELS: dict[str, dict[str, Any]] = {
    "made": {
        "model": {"vocab": 512, "width": 96, "layers": 3, "heads": 6, "kv_heads": 2, "head_width": 16,
                  "ffn_width": 208, "qk_norm": True, "tied_head": True, "mup_base_width": 64,
                  "moe": {"experts": 8, "top_k": 2, "expert_width": 80, "shared_experts": 1,
                          "first_dense_layers": 1}},
        "balance": {"aux_loss": 0.02, "z_loss": 0.001, "group_sequences": 2},
    },
    "sigmoid": {
        "model": {"vocab": 512, "width": 64, "layers": 2, "heads": 4, "head_width": 16, "ffn_width": 176,
                  "tied_head": False,
                  "moe": {"experts": 6, "top_k": 3, "expert_width": 48, "router": "sigmoid",
                          "gate_scale": 1.5}},
        "balance": {"aux_loss": 0.01, "z_loss": 0.0, "bias_update": 0.01},
    },
    "mixtral": {
        "model": {"vocab": 512, "width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "head_width": 16,
                  "ffn_width": 176, "tied_head": False, "moe": {"experts": 4, "top_k": 2, "expert_width": 96}},
        "balance": {"aux_loss": 0.0, "z_loss": 0.0},
    },
}


@dataclasses.dataclass
class Outcome:
    """Loss (with the balancing losses in it) and gradients by degu's names."""

    loss: float
    gradients: dict[str, torch.Tensor]


def make_checkpoints(folder: pathlib.Path, degu: str) -> list[pathlib.Path]:
    """Trains MADE_MODELS for a few steps, so that no weight is where initialisation put it."""
    data = prepare_random_text(folder, degu, vocab=512, megabytes=1)
    made = []
    for name, parts in MADE_MODELS.items():
        config = {
            "model": parts["model"],
            "data": {"paths": [str(data)], "sequence_length": 64, "validation_tokens": 2048},
            "train": {"precision": "fp32", "batch_sequences": 8, "unit_sequences": 2, "steps": 12,
                      "balance": parts["balance"], "optimizer": {"learning_rate": 0.01}},
        }
        path = folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config))
        run_degu(degu, "train", path, "--out", folder / name)
        made.append(folder / name)
    return made


def balance_of(config: dict[str, Any], sequences: int, length: int) -> Balance:
    """The balancing losses as degu adds them: groups of `group_sequences`, by default one unit."""
    train, balance = config["train"], config["train"]["balance"]
    group = balance["group_sequences"] or train["unit_sequences"] or max(1, train["batch_sequences"] // 8)
    if sequences % group:
        raise SystemExit(f"--sequences {sequences} is no multiple of the balance group of {group} sequences")
    return Balance(balance["aux_loss"], balance["z_loss"], group * length)


def degu_outcome(degu: str, checkpoint: Checkpoint, tokens: torch.Tensor, folder: pathlib.Path) -> Outcome:
    token_file, gradient_file = folder / "tokens.safetensors", folder / "gradients.safetensors"
    save_file({"tokens": tokens.to(torch.int32)}, str(token_file))
    run_degu(degu, "eval", checkpoint.folder, "--tokens", token_file, "--gradients", gradient_file)
    found = load_file(str(gradient_file))
    total = sum(found.pop(name).double().item() for name in ("loss", "aux_loss", "z_loss") if name in found)
    return Outcome(total, found)


def plain_outcome(model: dict[str, np.ndarray], shape: Shape, tokens: torch.Tensor,
                  balance: Balance) -> Outcome:
    torch_model = Transformer(shape, "plain", tokens.shape[1] - 1)
    state = {name: torch.from_numpy(value) for name, value in model.items()}
    problem = torch_model.load_state_dict(state, strict=False)
    if problem.unexpected_keys or any("router_bias" not in name for name in problem.missing_keys):
        raise SystemExit(f"tensors differ: PyTorch lacks {problem.unexpected_keys}, "
                         f"the checkpoint lacks {problem.missing_keys}")
    loss, extra = torch_model(tokens, balance)
    (loss + extra).backward()
    return Outcome((loss + extra).double().item(),
                   {name: p.grad for name, p in torch_model.named_parameters()})


# degu's names of one block -> Mixtral's below model.layers.N.
MIXTRAL_BLOCK = {
    "attention_norm": "input_layernorm.weight", "ffn_norm": "post_attention_layernorm.weight",
    "attention.wq": "self_attn.q_proj.weight", "attention.wk": "self_attn.k_proj.weight",
    "attention.wv": "self_attn.v_proj.weight", "attention.wo": "self_attn.o_proj.weight",
    "moe.router": "mlp.gate.weight", "moe.down": "mlp.experts.down_proj",
}


def mixtral_names(shape: Shape) -> dict[str, str]:
    names = {"embedding": "model.embed_tokens.weight", "final_norm": "model.norm.weight"}
    if not shape.tied_head:
        names["head"] = "lm_head.weight"
    for layer in range(shape.layers):
        for ours, theirs in MIXTRAL_BLOCK.items():
            names[f"blocks.{layer}.{ours}"] = f"model.layers.{layer}.{theirs}"
    return names


def mixtral_outcome(model: dict[str, np.ndarray], shape: Shape, tokens: torch.Tensor) -> Outcome:
    torch_model = mixtral(shape, "eager", tokens.shape[1] - 1)
    names = mixtral_names(shape)
    parameters = dict(torch_model.named_parameters())
    with torch.no_grad():
        for ours, theirs in names.items():
            parameters[theirs].copy_(torch.from_numpy(model[ours]))
        for layer in range(shape.layers):  # Mixtral keeps gate and up in one tensor
            pair = [torch.from_numpy(model[f"blocks.{layer}.moe.{half}"]) for half in ("gate", "up")]
            parameters[f"model.layers.{layer}.mlp.experts.gate_up_proj"].copy_(torch.cat(pair, dim=1))
    logits = torch_model(input_ids=tokens[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten())
    loss.backward()
    gradients = {ours: parameters[theirs].grad for ours, theirs in names.items()}
    for layer in range(shape.layers):
        halves = parameters[f"model.layers.{layer}.mlp.experts.gate_up_proj"].grad.chunk(2, dim=1)
        gradients |= {f"blocks.{layer}.moe.{half}": g for half, g in zip(("gate", "up"), halves)}
    return Outcome(loss.double().item(), gradients)


def compare(title: str, ours: Outcome, theirs: Outcome, args: argparse.Namespace) -> dict[str, Any]:
    """Prints the table; the returned summary says whether both bars are met."""
    loss_error = abs(ours.loss - theirs.loss) / abs(theirs.loss)
    rows, worst = [], ("", 0.0)
    missing = sorted(set(theirs.gradients) ^ set(ours.gradients))
    for name in sorted(set(theirs.gradients) & set(ours.gradients)):
        g, reference = ours.gradients[name].double(), theirs.gradients[name].double()
        error = ((g - reference).norm() / reference.norm().clamp_min(1e-30)).item()
        rows.append((name, tuple(reference.shape), g.norm().item(), reference.norm().item(), error))
        worst = max(worst, (name, error), key=lambda pair: pair[1])
    passed = loss_error <= args.loss_bar and worst[1] <= args.gradient_bar and not missing and bool(rows)
    if not args.json:
        print(f"\n{title}\n  loss: degu {ours.loss:.8f}  PyTorch {theirs.loss:.8f}  "
              f"relative difference {loss_error:.1e} (bar {args.loss_bar:.0e})")
        print(f"  {'gradient of':<34}{'shape':<18}{'‖degu‖':>12}{'‖PyTorch‖':>12}{'‖Δ‖/‖g‖':>10}")
        for name, shape, norm, reference_norm, error in rows:
            mark = "" if error <= args.gradient_bar else "  over the bar"
            print(f"  {name:<34}{'x'.join(map(str, shape)):<18}{norm:>12.5e}{reference_norm:>12.5e}"
                  f"{error:>10.1e}{mark}")
        for name in missing:
            print(f"  {name}: only on one side")
        print(f"  worst {worst[1]:.1e} at {worst[0]} (bar {args.gradient_bar:.0e}): "
              f"{'passed' if passed else 'FAILED'}")
    return {"check": title, "passed": passed, "loss_degu": ours.loss, "loss_torch": theirs.loss,
            "loss_error": loss_error, "worst_gradient": worst[0], "worst_gradient_error": worst[1],
            "tensors": len(rows), "one_sided": missing}


def check(folder: pathlib.Path, args: argparse.Namespace, degu: str,
          scratch: pathlib.Path) -> list[dict[str, Any]]:
    checkpoint = Checkpoint(folder)
    config = checkpoint.config()
    if config["train"]["precision"] != "fp32":
        raise SystemExit(f"{folder}: trained in {config['train']['precision']}; the bars are for fp32")
    shape = Shape.from_config(config["model"])
    length = min(args.length, config["data"]["sequence_length"])
    generator = torch.Generator().manual_seed(args.seed)
    tokens = torch.randint(0, shape.vocab, (args.sequences, length + 1), generator=generator)
    balance = balance_of(config, args.sequences, length)
    model = checkpoint.model()
    ours = degu_outcome(degu, checkpoint, tokens, scratch)

    title = f"{folder.name}, {args.sequences} sequences of {length}"
    results = [compare(f"{title}: plain PyTorch, balancing losses included", ours,
                       plain_outcome(model, shape, tokens, balance), args)]
    balanced = balance.aux_loss or balance.z_loss
    biased = any(np.any(value) for name, value in model.items() if name.endswith("router_bias"))
    reason = mixtral_mismatch(shape) or ("no balancing loss" if balanced else "") or (
        "no selection bias" if biased else "")
    if reason:
        print(f"{folder.name}: Mixtral is no match, it needs: {reason}", file=sys.stderr)
    else:
        results.append(compare(f"{title}: transformers' Mixtral", ours,
                               mixtral_outcome(model, shape, tokens), args))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("checkpoints", type=pathlib.Path, nargs="*",
                        help="checkpoints or runs, trained in fp32; none: three small ones are made")
    parser.add_argument("--degu", help="the binary (default: the checkout's release build)")
    parser.add_argument("--sequences", type=int, default=8, help="random sequences to compare on")
    parser.add_argument("--length", type=int, default=64, help="tokens of one, at most the run's own")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loss-bar", type=float, default=1e-5)
    parser.add_argument("--gradient-bar", type=float, default=1e-4)
    parser.add_argument("--json", action="store_true", help="print one object instead of tables")
    args = parser.parse_args()
    degu = find_degu(args.degu)
    torch.manual_seed(0)

    results = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch)
        for checkpoint in args.checkpoints or make_checkpoints(folder, degu):
            results += check(checkpoint, args, degu, folder)
    passed = all(result["passed"] for result in results)
    if args.json:
        print(json.dumps({"passed": passed, "checks": results}))
    else:
        print(f"\n{sum(r['passed'] for r in results)} of {len(results)} comparisons passed")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
