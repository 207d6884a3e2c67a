"""A published checkpoint through our tree and out again, and a run of ours out."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxformer.data import Tokenizer
from jaxformer.interop import families, reader, tokenizers, writer
from jaxformer.interop.family import labels
from jaxformer.interop.huggingface import load_huggingface, read_config, save_huggingface
from jaxformer.models import Model, count_parameters

_KEPT = ("id2label", "label2id", "problem_type")
_DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    say: Callable[[str], None] = print,
) -> None:
    """Loads a checkpoint into our tree, writes it anew, and takes its tokenizer along.

    Weights keep their type, where they all have the same; ids of special tokens and names of labels
    are kept in config.json.

    Args:
      source: a folder with config.json and safetensors.
      target: a new folder.
      say: prints lines for the user; the last tells family, parameters and seconds.

    Raises:
      UserError: see load_huggingface and save_huggingface.
    """
    start = time.perf_counter()
    writer.refuse_existing(Path(target))
    family, hf = read_config(Path(source))
    found = {stored.dtype for stored in reader.read_tensors(Path(source))[0].values()}
    dtype = _DTYPES.get(found.pop(), "float32") if len(found) == 1 else "float32"
    model, params = load_huggingface(source, dtype=dtype)
    save_huggingface(
        target, model, params,
        tokenizer=Path(source), model_type=family.model_type, extra=_kept(hf), say=say,
    )  # fmt: skip
    say(_describe(family.model_type, params, start, target))


def export(
    target: str | os.PathLike[str],
    model: Model,
    params: Any,
    tokenizer: Tokenizer,
    *,
    start: float,
    class_names: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Writes a model that was trained here, with its tokenizer and the ids of its special tokens.

    Args:
      target: a new folder.
      model: as made by its family.
      params: its parameters.
      tokenizer: the run's.
      start: time.perf_counter() of when the work began, for the line that is said.
      class_names: of its classes or tags, by their number, for whoever reads its answers.
      say: prints lines for the user.

    Raises:
      UserError: see save_huggingface.
    """
    extra: dict[str, Any] = dict(tokenizers.token_ids(tokenizer))
    heads = (getattr(model.config, "num_classes", 0), getattr(model.config, "num_tags", 0))
    if class_names and len(class_names) in heads:
        extra |= labels(class_names)
    family = families.of_model(model.config)
    save_huggingface(target, model, params, tokenizer=tokenizer, extra=extra, say=say)
    say(_describe(family.model_type, params, start, target))


def _describe(name: str, params: Any, start: float, target: str | os.PathLike[str]) -> str:
    seconds, count = time.perf_counter() - start, count_parameters(params)
    return f"{name}: {count:,} parameters in {seconds:.1f} s, written to {os.fspath(target)}"


def _kept(hf: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in hf.items() if k in _KEPT or k.endswith("_token_id")}
