"""Hugging Face checkpoints in and out: config.json and safetensors, and nothing that is code."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from jaxformer import config as configs
from jaxformer import models
from jaxformer.errors import UserError
from jaxformer.interop import families, place, reader, tokenizers, writer
from jaxformer.interop.family import Family, labels
from jaxformer.interop.matching import match
from jaxformer.interop.reader import BrokenError, Stored
from jaxformer.interop.table import Shape, Table, expand
from jaxformer.models import Model
from jaxformer.parallel import rules

DTYPES = ("float32", "bfloat16", "float16")


def load_huggingface(
    directory: str | os.PathLike[str],
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    key: jax.Array | None = None,
    **overrides: Any,
) -> tuple[Model, Any]:
    """Loads a published checkpoint: config.json and model.safetensors, or an index and its shards.

    Everything is checked before the first tensor is read. Pickles (.bin) and remote code are never
    touched. On a CPU the arrays lie where they were read to; on an accelerator they arrive tensor
    by tensor; with `mesh` each device's part is read by itself.

    Args:
      directory: of the checkpoint.
      dtype: of the parameters, "float32", "bfloat16" or "float16".
      mesh: from parallel.mesh.make; splits the parameters by parallel/rules.py.
      key: starts the parameters of heads that `overrides` add and no file holds; None refuses them.
      **overrides: keys of our model's Config to change, e.g. compute_dtype="bfloat16", or
        num_classes=3 for a new classifier, or masked_head=False to leave a head out.

    Returns:
      (model, params).

    Raises:
      UserError: the folder does not hold what it should. One line for each thing that is wrong.
    """
    folder = Path(directory)
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    family, hf = read_config(folder)
    stored, problems = reader.read_tensors(folder)
    if not stored:
        reader.refuse(folder, problems)
    published_config = _our_config(folder, family, hf, stored)
    _refuse_too_deep(folder, published_config, len(stored))
    asked = {**dataclasses.asdict(published_config), **overrides}
    config = configs.build(family.config_class, asked, "model")
    model = models.make(config)
    shapes = _shapes(config)
    wanted = table = expand(family.table(config), shapes)
    if config != published_config:
        table = expand(family.table(published_config), _shapes(published_config))
    sources, more = match(family, table, wanted, stored, fresh=bool(overrides and key is not None))
    problems += more + tokenizers.problems(folder, config)
    reader.refuse(folder, problems)

    present = {slot.path for name in sources for slot in wanted.published[name].slots}
    present |= {path for path, _ in wanted.fills}
    to_read = {path: shapes[path] for path in shapes if path in present}
    try:
        leaves = _read(wanted, sources, to_read, np.dtype(_numpy(dtype)), mesh)
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error.strerror or error}") from None
    missing = [path for path in shapes if path not in present]
    if missing and key is not None:
        leaves |= _start(model, key, missing, dtype, mesh)
    return model, _nested({path: leaves[path] for path in shapes})


def save_huggingface(
    directory: str | os.PathLike[str],
    model: Model,
    params: Any,
    *,
    tokenizer: Any = None,
    model_type: str | None = None,
    extra: Mapping[str, Any] | None = None,
    max_shard_size: int = writer.MAX_SHARD_SIZE,
    say: Callable[[str], None] = print,
) -> None:
    """Writes a model as transformers loads it: config.json, safetensors, and the tokenizer.

    The folder appears when all of it is written. Heads that no published class has together with
    the others are left out, and named.

    Args:
      directory: a new folder.
      model: as made by its family.
      params: its parameters, wherever they lie.
      tokenizer: a data.Tokenizer, or a folder whose tokenizer files are copied.
      model_type: the published family, where several compute the same; None takes the first.
      extra: further keys of config.json (ids of tokens, names of labels).
      max_shard_size: bytes of one file.
      say: prints one line for the user.

    Raises:
      UserError: the folder is there already, or no published family computes what the model does.
    """
    folder = Path(directory)
    writer.refuse_existing(folder)
    family = families.of_model(model.config, model_type)
    config = family.reduce(model.config)
    leaves, shapes = _flat(params), _shapes(config)
    table = expand(family.table(config), shapes)
    wrong = [f"{path} is {tuple(leaves[path].shape) if path in leaves else 'not there'}, and the "
             f"model's config makes it {shape}" for path, shape in shapes.items()
             if path not in leaves or tuple(leaves[path].shape) != shape]  # fmt: skip
    if wrong:
        raise UserError(f"these are not the parameters of this model: {'; '.join(wrong[:8])}")
    written = family.write_config(config)
    left_out = sorted({path.split("/")[0] for path in leaves if path not in shapes})
    if left_out:
        kind = written["architectures"][0]
        say(f"left out: {', '.join(left_out)}; {kind} has no such parameters")
    dtypes = {np.dtype(leaves[path].dtype).name for path in shapes}
    written["torch_dtype"] = dtypes.pop() if len(dtypes) == 1 else "float32"
    published = {name: t for name, t in table.published.items() if t.use != "read"}

    def fill(folder: Path) -> None:
        writer.write_json(folder / "config.json", {**written, **(extra or {})})
        writer.write_tensors(folder, published, leaves, max_shard_size)
        tokenizers.write(folder, tokenizer, config.max_length)

    writer.write_folder(folder, fill)


def is_published(directory: str | os.PathLike[str]) -> bool:
    """Returns whether a folder holds a published checkpoint: a config.json with a model_type."""
    try:
        return "model_type" in reader.read_json(Path(directory) / "config.json")
    except BrokenError:
        return False


def published_config(directory: str | os.PathLike[str]) -> tuple[str, Any]:
    """Returns (the name of our model family, our Config) of a published checkpoint.

    Raises:
      UserError: it is of a kind that ours does not compute.
    """
    folder = Path(directory)
    family, hf = read_config(folder)
    stored, problems = reader.read_tensors(folder)
    if not stored:
        reader.refuse(folder, problems)
    config = _our_config(folder, family, hf, stored)
    return models.family_of(config), config


def label_names(directory: str | os.PathLike[str]) -> tuple[str, ...]:
    """Returns the names of a published checkpoint's classes or tags, by their number.

    () where config.json names none, or has numbered names only (LABEL_0).
    """
    names = read_config(Path(directory))[1].get("id2label")
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))}:
        return ()
    found = tuple(str(names[str(i)]) for i in range(len(names)))
    return () if found == tuple(labels(len(found))["label2id"]) else found


def read_config(directory: Path) -> tuple[Family, dict[str, Any]]:
    """Returns the family of a checkpoint and its config.json.

    Raises:
      UserError: there is no such folder or file, or its model_type is not known.
    """
    if not directory.is_dir():
        raise UserError(f"{directory}: no such folder; give one that holds config.json and weights")
    try:
        hf = reader.read_json(directory / "config.json")
        return families.of_checkpoint(hf), hf
    except (BrokenError, UserError) as problem:
        raise UserError(f"{directory}: {problem}") from None


def _our_config(
    directory: Path, family: Family, hf: Mapping[str, Any], stored: Mapping[str, Stored]
) -> Any:
    try:
        config = family.read_config(hf, frozenset(stored))
        return configs.build(family.config_class, dataclasses.asdict(config), "model")
    except UserError as problem:
        raise UserError(f"{directory}: {problem}") from None
    except (TypeError, ValueError, KeyError, AttributeError) as error:  # a value of a wrong type
        raise UserError(
            f"{directory}: config.json does not describe a {family.model_type}: "
            f"{type(error).__name__}: {error}"
        ) from None


def _refuse_too_deep(directory: Path, config: Any, count: int) -> None:
    """Raises UserError for more layers or experts than tensors: a table of them has no end."""
    if getattr(config, "share_layers", False):
        return
    for key in ("num_layers", "decoder_layers", "num_experts"):
        if getattr(config, key, 0) > count:
            raise UserError(
                f"{directory}: config.json makes {key} {getattr(config, key)}, and the files hold "
                f"{count} tensors in all"
            )


@functools.lru_cache(maxsize=64)  # tracing a model's init takes longer than all the checks
def _shapes(config: Any) -> dict[str, Shape]:
    shapes = jax.eval_shape(models.make(config).init, jax.random.key(0))
    return {path: tuple(leaf.shape) for path, leaf in _flat(shapes).items()}


def _flat(params: Any) -> dict[str, Any]:
    return {rules.path_name(path): leaf
            for path, leaf in jax.tree_util.tree_leaves_with_path(params)}  # fmt: skip


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return tree


def _read(
    table: Table,
    sources: Mapping[str, Stored],
    shapes: Mapping[str, Shape],
    dtype: np.dtype,
    mesh: Mesh | None,
) -> dict[str, jax.Array]:
    if mesh is not None:
        return place.over_mesh(table, sources, shapes, dtype, _shardings(shapes, mesh))
    if jax.default_backend() == "cpu":
        return place.on_cpu(table, sources, shapes, dtype)
    return place.by_layer(table, sources, shapes, dtype)


def _shardings(shapes: Mapping[str, Shape], mesh: Mesh) -> dict[str, NamedSharding]:
    return {path: NamedSharding(mesh, rules.spec(path, shape, mesh))
            for path, shape in shapes.items()}  # fmt: skip


def _start(
    model: Model, key: jax.Array, paths: list[str], dtype: str, mesh: Mesh | None
) -> dict[str, jax.Array]:
    """Returns the parameters of these paths as `model.init` begins them; others are not made."""

    def init(key: jax.Array) -> dict[str, jax.Array]:
        leaves = _flat(model.init(key))
        return {path: leaves[path].astype(dtype) for path in paths}

    shardings = None
    if mesh is not None:
        shapes = {path: tuple(leaf.shape) for path, leaf in jax.eval_shape(init, key).items()}
        shardings = _shardings(shapes, mesh)
    return jax.jit(init, out_shardings=shardings)(key)


def _numpy(dtype: str) -> Any:
    return jax.numpy.dtype(dtype)
