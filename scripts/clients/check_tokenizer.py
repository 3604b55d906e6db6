#!/usr/bin/env python3
"""Compares the tokenizer that `degu export --tokenizer-to` wrote, as AutoTokenizer reads it, with the ids in shards.

    check_tokenizer.py FOLDER SHARDS [--tokens N]

Every document of the validation shards is decoded and encoded again. Prints what was compared; exit 1 when an id
differs.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Iterator

os.environ["HF_HUB_OFFLINE"] = "1"

import h5py
from transformers import AutoTokenizer


def documents(shards: pathlib.Path) -> Iterator[list[int]]:
    """The ids of every validation document, without BOS and EOS."""
    for path in sorted(shards.rglob("*-validation-*.h5")):
        with h5py.File(path) as file:
            tokens, offsets = file["tokens"][:], file["document_offsets"][:]
        for begin, end in zip(offsets, offsets[1:]):
            yield [int(t) for t in tokens[begin:end] if t not in (1, 2)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("shards", type=pathlib.Path)
    parser.add_argument("--tokens", type=int, default=200_000, help="stop after so many")
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.folder)
    compared = unequal = texts = 0
    for ids in documents(arguments.shards):
        text = tokenizer.decode(ids)
        again = tokenizer.encode(text, add_special_tokens=False)
        if again != ids:
            unequal += 1
            at = next((i for i, (a, b) in enumerate(zip(again, ids)) if a != b), min(len(again), len(ids)))
            print(f"document {texts}: token {at} is {again[at:at + 3]}, in the shard {ids[at:at + 3]}")
        texts += 1
        compared += len(ids)
        if compared >= arguments.tokens:
            break
    with_bos = tokenizer.encode("a")
    print(json.dumps({"documents": texts, "tokens": compared, "unequal_documents": unequal,
                      "bos_first": with_bos[0] == tokenizer.bos_token_id}))
    return 1 if unequal or not compared or with_bos[0] != tokenizer.bos_token_id else 0


if __name__ == "__main__":
    sys.exit(main())
