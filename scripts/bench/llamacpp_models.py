#!/usr/bin/env python3
"""Random models for llama.cpp, and a process that loads one and times it.

  llamacpp_models.py write SHAPE.json --format Q8_0 --out FILE.gguf
  llamacpp_models.py time FILE.gguf --degu BINARY [--threads 2] …      prints one JSON object

The models have Qwen3-MoE's architecture (RMSNorm on each query and key head, rotary positions, SwiGLU experts,
softmax over the chosen ones), which is what degu computes. Weights are written block by block in the format's own
bytes: no unquantized copy exists. Routers and norms are fp32, as everywhere.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import time
from typing import Any, Iterator

import numpy as np

BLOCK = 32
BLOCK_BYTES = {"Q8_0": 34, "Q4_0": 18}


def tensors(shape: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...], float | None]]:
    """Name, shape and, for what is quantized, the standard deviation; None: fp32."""
    d, v, layers = shape["width"], shape["vocab"], shape["layers"]
    a = d // shape["heads"]
    e, f = shape["experts"], shape["expert_width"]
    std = 0.02
    yield "token_embd.weight", (v, d), std
    for i in range(layers):
        b = f"blk.{i}."
        yield b + "attn_norm.weight", (d,), None
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            yield f"{b}{name}.weight", (d, d), std
        yield b + "attn_q_norm.weight", (a,), None
        yield b + "attn_k_norm.weight", (a,), None
        yield b + "ffn_norm.weight", (d,), None
        yield b + "ffn_gate_inp.weight", (e, d), None
        yield b + "ffn_gate_exps.weight", (e, f, d), std
        yield b + "ffn_up_exps.weight", (e, f, d), std
        yield b + "ffn_down_exps.weight", (e, d, f), std
    yield "output_norm.weight", (d,), None
    yield "output.weight", (v, d), std


def random_blocks(generator: np.random.Generator, blocks: int, kind: str, std: float) -> np.ndarray:
    """`blocks` blocks of 32 weights: an fp16 scale, then the codes."""
    size = BLOCK_BYTES[kind]
    out = np.frombuffer(bytearray(generator.bytes(blocks * size)), dtype=np.uint8).reshape(blocks, size)
    largest = 127.0 if kind == "Q8_0" else 8.0
    scale = std * 3 ** 0.5 / largest * (1 + 0.1 * generator.standard_normal(blocks))
    out[:, :2] = scale.astype(np.float16).view(np.uint8).reshape(blocks, 2)
    if kind == "Q8_0":
        codes = out[:, 2:]
        codes[codes == 0x80] = 0x81
    return out


def write_model(shape: dict[str, Any], kind: str, path: pathlib.Path) -> None:
    import gguf

    quantized = getattr(gguf.GGMLQuantizationType, kind)
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_context_length(4096)
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["expert_width"])
    writer.add_expert_feed_forward_length(shape["expert_width"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["heads"])
    writer.add_key_length(shape["width"] // shape["heads"])
    writer.add_value_length(shape["width"] // shape["heads"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_expert_count(shape["experts"])
    writer.add_expert_used_count(shape["top_k"])
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("no_vocab")
    rows = list(tensors(shape))
    for name, size, std in rows:
        if std is None:
            writer.add_tensor_info(name, size, np.dtype(np.float32), int(np.prod(size)) * 4)
        else:
            row = size[-1] // BLOCK * BLOCK_BYTES[kind]
            writer.add_tensor_info(name, (*size[:-1], row), np.dtype(np.uint8),
                                   int(np.prod(size[:-1])) * row, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.Generator(np.random.SFC64(1))
    for name, size, std in rows:
        if std is not None:
            data = random_blocks(generator, int(np.prod(size)) // BLOCK, kind, std)
        elif name.endswith("ffn_gate_inp.weight"):
            data = (0.02 * generator.standard_normal(size)).astype(np.float32)
        else:
            data = np.ones(size, dtype=np.float32)
        writer.write_tensor_data(data.reshape(-1))
    writer.close()


class Model:
    """A loaded file; contexts come and go."""

    def __init__(self, path: pathlib.Path, threads: int) -> None:
        import llama_cpp

        self.api, self.threads = llama_cpp, threads
        self.quiet = llama_cpp.llama_log_callback(lambda *_: None)
        llama_cpp.llama_log_set(self.quiet, ctypes.c_void_p(0))
        start = time.perf_counter()
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(),
                                                          llama_cpp.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp does not load {path}")
        self.load_seconds = time.perf_counter() - start
        self.vocab = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.random = np.random.Generator(np.random.SFC64(2))

    def context(self, streams: int, tokens: int, batch: int) -> Any:
        params = self.api.llama_context_default_params()
        per_stream = (tokens + 255) // 256 * 256
        params.n_ctx, params.n_seq_max = streams * per_stream, streams
        params.n_batch = params.n_ubatch = batch
        params.n_threads = params.n_threads_batch = self.threads
        context = self.api.llama_init_from_model(self.model, params)
        if not context:
            raise SystemExit("llama.cpp makes no context")
        return context

    def decode(self, context: Any, rows: list[tuple[int, int]], logits: int) -> None:
        """One pass over random tokens at (sequence, position); the last `logits` rows want logits."""
        batch = self.api.llama_batch_init(len(rows), 0, 1)
        tokens = self.random.integers(0, self.vocab, len(rows))
        for i, (sequence, position) in enumerate(rows):
            batch.token[i], batch.pos[i] = int(tokens[i]), position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = i >= len(rows) - logits
        batch.n_tokens = len(rows)
        status = self.api.llama_decode(context, batch)
        self.api.llama_synchronize(context)
        self.api.llama_batch_free(batch)
        if status != 0:
            raise SystemExit(f"llama_decode: {status}")

    def prefill(self, prompt: int, rounds: int) -> list[float]:
        context = self.context(1, prompt, prompt)
        seconds = []
        for _ in range(rounds + 1):
            self.api.llama_memory_clear(self.api.llama_get_memory(context), True)
            start = time.perf_counter()
            self.decode(context, [(0, p) for p in range(prompt)], 1)
            seconds.append(time.perf_counter() - start)
        self.api.llama_free(context)
        return seconds[1:]

    def decode_rate(self, streams: int, depth: int, tokens: int) -> float:
        """Tokens per second of all streams together; what came before stands in the cache."""
        context = self.context(streams, depth + tokens + 4, max(512, streams))
        for stream in range(streams if depth else 0):
            for begin in range(0, depth, 512):
                self.decode(context, [(stream, p) for p in range(begin, min(begin + 512, depth))], 1)
        seconds = 0.0
        for i in range(tokens + 4):
            start = time.perf_counter()
            self.decode(context, [(s, depth + i) for s in range(streams)], streams)
            seconds += (time.perf_counter() - start) if i >= 4 else 0.0
        self.api.llama_free(context)
        return streams * tokens / seconds


def bandwidth(degu: str, threads: int) -> float:
    done = subprocess.run([degu, "bench", "memory", "--threads", str(threads), "--json"],
                          capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["read_bandwidth"]


def time_model(args: argparse.Namespace) -> dict[str, Any]:
    model = Model(args.file, args.threads)
    seconds = model.prefill(args.prompt, args.rounds)
    out: dict[str, Any] = {
        "load_seconds": model.load_seconds,
        "prefill": {"tokens": args.prompt, "seconds": seconds,
                    "tokens_per_second": args.prompt / statistics.median(seconds)},
        "decode": []}
    for streams in args.streams:
        rounds = []
        for _ in range(args.rounds):
            before = bandwidth(args.degu, args.threads)
            rate = model.decode_rate(streams, args.depth, args.tokens)
            rounds.append({"tokens_per_second": rate, "probes": [before, bandwidth(args.degu, args.threads)]})
        out["decode"].append({"streams": streams, "rounds": rounds})
    out["peak_resident_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    write = commands.add_parser("write")
    write.add_argument("shape", type=pathlib.Path)
    write.add_argument("--format", choices=BLOCK_BYTES, required=True)
    write.add_argument("--out", type=pathlib.Path, required=True)
    timing = commands.add_parser("time")
    timing.add_argument("file", type=pathlib.Path)
    timing.add_argument("--degu", required=True, help="the binary, for its bandwidth probe")
    timing.add_argument("--threads", type=int, default=2)
    timing.add_argument("--prompt", type=int, default=512)
    timing.add_argument("--tokens", type=int, default=64)
    timing.add_argument("--depth", type=int, default=0)
    timing.add_argument("--streams", type=lambda text: [int(s) for s in text.split(",")], default=[1, 16])
    timing.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    if args.command == "write":
        write_model(json.loads(args.shape.read_text()), args.format, args.out)
    else:
        json.dump(time_model(args), sys.stdout)


if __name__ == "__main__":
    main()
