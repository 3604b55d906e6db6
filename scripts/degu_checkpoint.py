"""Reads degu's checkpoints (docs/formats/checkpoint.md) with h5py, for scripts that compare or plot.

An implementation of its own, so that it also checks the format's description.
"""

from __future__ import annotations

import json
import pathlib
import zlib
from typing import Any

import h5py
import numpy as np

from degu_yaml import load_yaml

MODEL_PREFIX = "model/"


class Checkpoint:
    """`folder` is a checkpoint (…/step-00000200) or a run's folder, whose newest checkpoint it then is."""

    def __init__(self, folder: str | pathlib.Path) -> None:
        folder = pathlib.Path(folder)
        if not (folder / "manifest.json").exists():
            found = sorted((folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder)
                           .glob("step-*/manifest.json"))
            if not found:
                raise SystemExit(f"{folder}: neither a checkpoint nor a run with one")
            folder = found[-1].parent
        self.folder = folder
        self.manifest = json.loads((folder / "manifest.json").read_text())
        self._files: dict[int, h5py.File] = {}

    def config(self) -> dict[str, Any]:
        """The resolved configuration the checkpoint was trained with."""
        return load_yaml((self.folder / "attachments" / "config.yaml").read_text())

    def names(self, prefix: str = MODEL_PREFIX) -> list[str]:
        """Tensors under a prefix, without it."""
        return [n.removeprefix(prefix) for n in self.manifest["tensors"] if n.startswith(prefix)]

    def read(self, name: str) -> np.ndarray:
        """One tensor by its full name, put together from its parts; every checksum is compared."""
        entry = self.manifest["tensors"][name]
        whole = np.empty(entry["shape"], dtype=np.float32)
        if entry["dtype"] != "fp32":
            raise SystemExit(f"{self.folder}: {name} is stored as {entry['dtype']}, this script reads fp32")
        flat = whole.reshape(-1)
        for part in entry["parts"]:
            data = self._dataset(part["file"], part["dataset"])
            if zlib.crc32(data.tobytes()) != int(part["crc32"], 16):
                raise SystemExit(f"{self.folder}: {name}: checksum differs; the file was altered")
            if "range" in part:
                flat[part["range"][0]:part["range"][1]] = data.reshape(-1)
            else:
                box = tuple(slice(o, o + n) for o, n in zip(part["offset"], part["shape"]))
                whole[box] = data.reshape(part["shape"])
        return whole

    def model(self) -> dict[str, np.ndarray]:
        """All of the model's tensors by degu's names."""
        return {name: self.read(MODEL_PREFIX + name) for name in self.names()}

    def _dataset(self, file: int, dataset: str) -> np.ndarray:
        if file not in self._files:
            self._files[file] = h5py.File(self.folder / self.manifest["files"][file]["name"], "r")
        return np.ascontiguousarray(self._files[file][dataset][()])
