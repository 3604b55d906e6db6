#!/usr/bin/env python3
"""Runs lm-evaluation-harness's local-completions against a running server, on tasks made from validation shards.

    check_lm_eval.py URL --tokenizer FOLDER --shards FOLDER [--documents N]

Two tasks: `rolling` scores whole documents (bits per byte), `cloze` asks which of four continuations belongs to a
document's beginning. The rolling score is compared with one summed up here from the server's own log-probabilities
over the same windows, and the cloze must be solved better than by chance. Prints one JSON object; exit 1 otherwise.
"""

import argparse
import itertools
import json
import math
import os
import pathlib
import random
import sys
import tempfile

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import h5py
import lm_eval
import requests
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import AutoTokenizer

ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/rolling.jsonl}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
CLOZE = """
task: cloze
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/cloze.jsonl}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{begin}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def texts(shards: pathlib.Path, tokenizer, count: int, tokens: int) -> list[str]:
    """The beginnings of `count` validation documents, from all domains in turn."""
    by_domain = []
    for path in sorted(shards.rglob("*-validation-*.h5")):
        with h5py.File(path) as file:
            ids, offsets = file["tokens"][:], file["document_offsets"][:]
        pieces = [[int(t) for t in ids[a:b] if t not in (1, 2)][:tokens] for a, b in zip(offsets, offsets[1:])]
        by_domain.append([tokenizer.decode(p) for p in pieces if len(p) == tokens])
    mixed = [text for group in itertools.zip_longest(*by_domain) for text in group if text is not None]
    if len(mixed) < count:
        sys.exit(f"{shards}: {len(mixed)} documents of {tokens} tokens, {count} are wanted")
    return mixed[:count]


def make_tasks(folder: pathlib.Path, documents: list[str]) -> None:
    draw = random.Random(5)
    (folder / "rolling.yaml").write_text(ROLLING.format(folder=folder))
    (folder / "cloze.yaml").write_text(CLOZE.format(folder=folder))
    with open(folder / "rolling.jsonl", "w") as out:
        for text in documents:
            out.write(json.dumps({"text": text}) + "\n")
    with open(folder / "cloze.jsonl", "w") as out:
        for text in documents:
            middle = text.find(" ", len(text) // 2)
            others = draw.sample([t for t in documents if t != text], 3)
            choices = [text[middle:middle + 60]] + [t[t.find(" ", len(t) // 2):][:60] for t in others]
            order = draw.sample(range(4), 4)
            out.write(json.dumps({"begin": text[:middle], "choices": [choices[i] for i in order],
                                  "answer": order.index(0)}) + "\n")


def own_bits_per_byte(url: str, model: str, tokenizer, documents: list[str], most: int) -> float:
    """The same windows of at most `most` tokens, asked for without the harness."""
    nats = size = 0.0
    for text in documents:
        ids = tokenizer.encode(text, add_special_tokens=False)
        size += len(text.encode())
        windows = get_rolling_token_windows(token_list=ids, prefix_token=tokenizer.bos_token_id,
                                            max_seq_len=most - 1, context_len=1)
        for context, scored in map(make_disjoint_window, windows):
            answer = requests.post(url + "/v1/completions", timeout=600, json={
                "model": model, "prompt": (context + scored)[-most:], "max_tokens": 0, "echo": True, "logprobs": 0})
            answer.raise_for_status()
            nats -= sum(answer.json()["choices"][0]["logprobs"]["token_logprobs"][-len(scored):])
    return nats / size / math.log(2)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the server, without /v1")
    parser.add_argument("--tokenizer", required=True, help="folder of `degu export --tokenizer-to`")
    parser.add_argument("--shards", required=True, type=pathlib.Path)
    parser.add_argument("--documents", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=120, help="of each document")
    arguments = parser.parse_args()
    served = requests.get(arguments.url + "/v1/models", timeout=60).json()["data"][0]
    tokenizer = AutoTokenizer.from_pretrained(arguments.tokenizer)
    documents = texts(arguments.shards, tokenizer, arguments.documents, arguments.tokens)
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        make_tasks(folder, documents)
        results = lm_eval.simple_evaluate(
            model="local-completions",
            model_args={"model": served["id"], "base_url": arguments.url + "/v1/completions",
                        "tokenizer": arguments.tokenizer, "tokenizer_backend": "huggingface",
                        "max_length": served["max_model_len"], "num_concurrent": 4, "batch_size": 4},
            tasks=["rolling", "cloze"], task_manager=TaskManager(include_path=name, include_defaults=False),
            bootstrap_iters=0)["results"]
    most = served["max_model_len"] - 1  # the harness keeps one free
    own = own_bits_per_byte(arguments.url, served["id"], tokenizer, documents, most)
    report = {"documents": len(documents), "bits_per_byte": results["rolling"]["bits_per_byte,none"],
              "bits_per_byte_without_harness": own, "cloze_accuracy": results["cloze"]["acc,none"]}
    print(json.dumps(report))
    same = abs(report["bits_per_byte"] - own) < 1e-5 * own
    return 0 if same and report["cloze_accuracy"] > 0.25 else 1


if __name__ == "__main__":
    sys.exit(main())
