"""Weights that are no numbers: a checkpoint that holds NaN or infinity is refused.

Nothing good comes of one: a single NaN makes every output NaN, and the loss of a training that
starts from it. Each command reads the files once more for this, at the speed of memory.
`load_huggingface` does not look, for whoever wants to see what became of such a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxformer.interop import reader
from jaxformer.interop.reader import Stored

# Of each type an integer of its width, and the exponent's bits: all of them are set in NaN and in
# infinity, and in no number.
_EXPONENTS: dict[str, tuple[type[np.unsignedinteger], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
_CHUNK = 1 << 20  # bytes, so that a chunk stays in the cache between the two passes over it


def refuse(directory: str | os.PathLike[str]) -> None:
    """Raises UserError if a safetensors file of a folder is broken, or holds NaN or infinity."""
    stored, problems = reader.read_tensors(Path(directory))
    reader.refuse(Path(directory), problems or _problems(stored))


def _problems(stored: dict[str, Stored]) -> Iterable[str]:
    """Returns a line for all tensors of like names that hold what is no number."""
    counts = {name: count for name, tensor in stored.items() if (count := _count(tensor))}
    for pattern, names in reader.grouped(counts).items():
        count, total = (sum(of[name] for name in names) for of in (counts, _sizes(stored, names)))
        yield (
            f"{pattern!r} holds NaN or infinity in {count:,} of its {total:,} numbers; the "
            "checkpoint is damaged, or its training went wrong: take another one"
        )


def _sizes(stored: dict[str, Stored], names: Iterable[str]) -> dict[str, int]:
    return {name: int(np.prod(stored[name].shape, dtype=np.int64)) for name in names}


def _count(tensor: Stored) -> int:
    """Returns how many numbers of a tensor are NaN or infinite; integers never are."""
    if tensor.dtype not in _EXPONENTS:
        return 0
    kind, value = _EXPONENTS[tensor.dtype]
    exponent, count = kind(value), 0
    left = tensor.size // exponent.itemsize
    buffer = np.empty(min(_CHUNK // exponent.itemsize, left), kind)
    with open(tensor.file, "rb", buffering=0) as file:
        file.seek(tensor.begin)
        while left:
            bits = buffer[: min(left, len(buffer))]
            if file.readinto(bits.view(np.uint8)) != bits.nbytes:  # type: ignore[arg-type]
                raise OSError(f"{tensor.file} ended too early while it was read")
            left -= len(bits)
            np.bitwise_and(bits, exponent, out=bits)
            if bits.max() == exponent:
                count += int(np.count_nonzero(bits == exponent))
    return count
