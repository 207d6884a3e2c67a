"""What the ledger asks of a published model, for torch modules that transformers does not have."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Any

import torch


class Result(types.SimpleNamespace):
    """What a forward pass returns: `logits`, and what else a module has to say."""


class FolderModule(torch.nn.Module):
    """A module with a config.json and a model.safetensors; `forward` and `generate` are its own.

    KEPT: the beginnings of names that stay in the file where several name one parameter, best
    first.
    """

    KEPT: tuple[str, ...] = ()

    def __init__(self, **config: Any):
        super().__init__()
        self.config = types.SimpleNamespace(**config)

    def save_pretrained(self, folder: Path) -> None:
        """Writes config.json, and each parameter under one of its names."""
        from safetensors.torch import save_file

        def rank(name: str) -> int:
            return next((i for i, at in enumerate(self.KEPT) if name.startswith(at)), 99)

        state, kept = self.state_dict(), {}
        for name in sorted(state, key=rank):
            kept.setdefault(state[name].data_ptr(), name)
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(vars(self.config)))
        save_file({name: state[name] for name in kept.values()}, folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path, output_loading_info: bool = False) -> Any:
        """Returns the module of a folder, and which names fit."""
        from safetensors.torch import load_file

        model = cls(**json.loads((folder / "config.json").read_text()))
        missing, unexpected = model.load_state_dict(
            load_file(folder / "model.safetensors"), strict=False
        )
        state = model.state_dict()  # a name is not missing if the file has another of its parameter
        there = {state[name].data_ptr() for name in set(state) - set(missing)}
        missing = [name for name in missing if state[name].data_ptr() not in there]
        info = {"missing_keys": missing, "unexpected_keys": unexpected, "mismatched_keys": []}
        return (model, info) if output_loading_info else model
