"""What a folder of safetensors holds: every tensor's name, type, shape and place, checked.

Only headers are read here. The safetensors library judges their structure (overlaps, holes, sizes);
bytes are read later, by place.py, straight to where they belong.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxformer.errors import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MOST_LINES = 20
_MOST_HEADER = 100_000_000  # bytes; the format's own limit


class Stored(NamedTuple):
    """A tensor in a file: its type ("F32"), shape, and where its bytes begin."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    size: int


class BrokenError(Exception):
    """A file that cannot be used, and why, in one line."""


def refuse(directory: Path, problems: Iterable[str]) -> None:
    """Raises UserError with a line for each problem, if there are any."""
    lines = list(problems)
    if len(lines) > _MOST_LINES:
        lines = [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more such lines"]
    if lines:
        raise UserError("\n".join(f"{directory}: {_plain(line)}" for line in lines))


def _plain(text: str) -> str:
    """Returns a text of strangers' names without line breaks and control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file; a key given twice is an error.

    Raises:
      BrokenError: no such file, not JSON, or not an object.
    """
    try:
        content = parse_json(path.read_bytes())
    except OSError as error:
        raise BrokenError(f"{path.name}: {error.strerror}") from None
    except ValueError as error:
        raise BrokenError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise BrokenError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content


def parse_json(text: bytes) -> Any:
    """Parses JSON in which no object may give a key twice; raises ValueError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"the key {twice!r} stands there twice")
        return found

    try:
        return json.loads(text.decode("utf-8"), object_pairs_hook=unique)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_header(path: Path) -> dict[str, Stored]:
    """Returns the tensors of one file.

    Raises:
      BrokenError: it is no safetensors file, it is truncated, or a name stands in it twice.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_MOST_HEADER, size - 8):
                raise BrokenError(
                    f"{path.name} is truncated or no safetensors file: its {size:,} bytes begin "
                    f"with a header of {length:,}; fetch it again"
                )
            header = parse_json(file.read(length))
        with safe_open(path, framework="numpy"):
            pass
    except OSError as error:
        raise BrokenError(f"{path.name}: {error.strerror or error}") from None
    except ValueError as error:
        raise BrokenError(f"{path.name}: its header is not valid: {error}") from None
    except SafetensorError as error:
        end = max((spec["data_offsets"][1] for spec in _specs(header).values()), default=0)
        if 8 + length + end > size:
            raise BrokenError(
                f"{path.name} is truncated: its header speaks of {8 + length + end:,} bytes, and "
                f"it has {size:,}; fetch it again"
            ) from None
        raise BrokenError(f"{path.name}: {' '.join(str(error).split())[:200]}") from None
    return {
        name: Stored(
            str(path),
            spec["dtype"],
            tuple(spec["shape"]),
            8 + length + spec["data_offsets"][0],
            spec["data_offsets"][1] - spec["data_offsets"][0],
        )
        for name, spec in _specs(header).items()
    }


def _specs(header: Any) -> dict[str, Any]:
    """Returns the header's entries of tensors, those that are shaped like one."""
    if not isinstance(header, dict):
        return {}
    found = {}
    for name, spec in header.items():
        at = spec.get("data_offsets") if isinstance(spec, dict) else None
        pair = isinstance(at, list) and len(at) == 2 and all(isinstance(x, int) for x in at)
        if pair and name != "__metadata__":
            found[name] = spec
    return found


def read_tensors(directory: Path) -> tuple[dict[str, Stored], list[str]]:
    """Returns the tensors of a folder, by their published names, and what is wrong with it.

    Args:
      directory: holds model.safetensors, or model.safetensors.index.json with its shards.
    """
    problems: list[str] = []
    mapping: dict[str, str] = {}
    if (directory / SINGLE).exists():
        files = [SINGLE]
    elif (directory / INDEX).exists():
        try:
            mapping = _weight_map(read_json(directory / INDEX))
        except BrokenError as problem:
            return {}, [str(problem)]
        files = []
        for file in dict.fromkeys(mapping.values()):
            escape = _escapes(file)
            if escape:
                problems.append(f"{INDEX} names {file!r}, {escape}")
            elif not (directory / file).exists():
                count = list(mapping.values()).count(file)
                problems.append(f"{file} is not there, and {INDEX} puts {count} tensors into it")
            else:
                files.append(file)
    else:
        return {}, [_nothing_to_read(directory)]
    found: dict[str, Stored] = {}
    for file in files:
        try:
            tensors = read_header(directory / file)
        except BrokenError as problem:
            problems.append(str(problem))
            mapping = {name: at for name, at in mapping.items() if at != file}
            continue
        for name, stored in tensors.items():
            if name in found:
                problems.append(f"{file} and {Path(found[name].file).name} both hold {name!r}")
            found[name] = stored
    for name, file in mapping.items():
        if file in files and (name not in found or Path(found[name].file).name != file):
            problems.append(f"{INDEX} puts {name!r} into {file}, which does not hold it")
    return found, problems


def _weight_map(index: dict[str, Any]) -> dict[str, str]:
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(f, str) for f in mapping.values()):
        raise BrokenError(f'{INDEX} has no "weight_map" of names to files')
    return mapping


def _escapes(file: str) -> str:
    """Returns why a shard's name is refused, or "": it must be a plain name in the folder."""
    if "/" in file or "\\" in file or file in ("", ".", "..") or ":" in file:
        return "which may lie outside this folder; a shard is a plain file name in it"
    if not file.endswith(".safetensors"):
        return "which is no .safetensors file; others are not read"
    return ""


def _nothing_to_read(directory: Path) -> str:
    if any(directory.glob("*.bin")):
        return (
            "has weights in .bin only, which are pickles: reading one can run any code; where you "
            "trust it, load it with transformers and save_pretrained() it, which writes safetensors"
        )
    return f"holds neither {SINGLE} nor {INDEX}"


def grouped(names: Iterable[str]) -> dict[str, list[str]]:
    """Groups names that differ in their numbers only: "h.*.attn" -> its names."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", name), []).append(name)
    return {(pattern if len(found) > 1 else found[0]): found for pattern, found in groups.items()}
