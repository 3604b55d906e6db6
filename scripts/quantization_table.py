#!/usr/bin/env python3
"""What each scheme and method of quantization costs a trained model, on the same validation tokens.

  scripts/quantization_table.py RUN --out runs/quantization/NAME [--validation-tokens 40000]
                                [--schemes w8a8,w4a8,...] [--methods rtn,mse,awq,gptq] [--json]

Quantizes the checkpoint with every scheme and method into --out (what stands there is taken as it is),
compares each with the bf16 model (`degu eval --reference`), and prints one line each: perplexity and its
change, KL divergence, most likely tokens that agree, tokens whose experts changed, bytes. Then, per scheme,
every method against rtn on the same documents: the interval of the paired bootstrap says whether it is better.
"""

from __future__ import annotations

import argparse
import json
import pathlib
from typing import Any

from degu_command import find_degu, run_degu

METHODS = {"w8a8": ["rtn", "gptq"], "w8a16": ["rtn"], "fp8": ["rtn"], "w4a8": ["rtn", "mse", "awq", "gptq"],
           "w4a16": ["rtn", "awq", "gptq"]}


def compare(degu: str, model: pathlib.Path | str, reference: pathlib.Path | str,
            arguments: argparse.Namespace) -> dict[str, Any]:
    """The comparison of two checkpoints, kept beside the model."""
    kept = pathlib.Path(model) / f"against-{pathlib.Path(reference).name}-{arguments.validation_tokens}.json"
    if not kept.exists():
        data = ["--data", arguments.data] if arguments.data else []
        kept.write_text(run_degu(degu, "eval", model, "--reference", reference, "--json",
                                 "--validation-tokens", arguments.validation_tokens, *data))
    return json.loads(kept.read_text())


def quantized(degu: str, scheme: str, method: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Quantizes unless it stands already; the audit."""
    folder = pathlib.Path(arguments.out) / f"{scheme}-{method}"
    audit = folder / "audit.json"
    if not audit.exists():
        data = ["--calibration", arguments.data] if arguments.data and method in ("awq", "gptq") else []
        text = run_degu(degu, "quantize", arguments.run, "--scheme", scheme, "--method", method,
                        "--out", folder, "--json", *data)
        audit.write_text(text)
    return json.loads(audit.read_text()) | {"folder": str(folder)}


def percent(estimate: dict[str, Any], digits: int = 3) -> str:
    low, high = (100 * x for x in estimate["interval"])
    return f"{100 * estimate['value']:+.{digits}f} ({low:+.{digits}f} to {high:+.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a checkpoint, or the folder of a run")
    parser.add_argument("--out", required=True, help="folder for the quantized checkpoints")
    parser.add_argument("--validation-tokens", type=int, default=40000, help="per domain; 0: all")
    parser.add_argument("--data", help="prepared shards; default: what the model was trained on")
    parser.add_argument("--schemes", default=",".join(METHODS))
    parser.add_argument("--methods", help="only these")
    parser.add_argument("--degu", help="the binary; default: the checkout's release build")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    degu = find_degu(arguments.degu)
    only = arguments.methods.split(",") if arguments.methods else None
    rows: list[dict[str, Any]] = []
    for scheme in arguments.schemes.split(","):
        for method in METHODS[scheme]:
            if only and method not in only:
                continue
            audit = quantized(degu, scheme, method, arguments)
            against = compare(degu, audit["folder"], arguments.run, arguments)
            row = {"scheme": scheme, "method": method, "bytes": audit["bytes"], "bits": audit["mean_bits"],
                   "calibration": audit.get("calibration"), **against}
            first = pathlib.Path(arguments.out) / f"{scheme}-rtn"
            if method != "rtn" and first.exists():
                row["against_rtn"] = compare(degu, audit["folder"], first, arguments)["perplexity_change"]
            rows.append(row)
    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    print(f"bf16: perplexity {rows[0]['reference_perplexity']:.4f} on {rows[0]['tokens']} tokens of "
          f"{rows[0]['documents']} documents\n")
    print("| scheme | method | perplexity | change, % (95 %) | KL, nats | same top token, % | rerouted, % | bytes | "
          "perplexity against rtn, % (95 %) |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        better = percent(row["against_rtn"]) if "against_rtn" in row else ""
        print(f"| {row['scheme']} | {row['method']} | {row['perplexity']:.4f} | {percent(row['perplexity_change'])} | "
              f"{row['kl']['value']:.5f} | {100 * row['top1_agreement']['value']:.2f} | "
              f"{100 * row['routing_changed']['value']:.2f} | {row['bytes']:,} | {better} |")
    weak = [(row["scheme"], row["method"], layer["layer"], e) for row in rows if row["calibration"]
            for layer in row["calibration"]["layers"] for e, x in enumerate(layer["experts"]) if x["fell_back"]]
    print(f"\nexperts that fell back for want of calibration tokens: {len(weak)}"
          + "".join(f"\n  {s} {m}: layer {layer} expert {e}" for s, m, layer, e in weak))


if __name__ == "__main__":
    main()
