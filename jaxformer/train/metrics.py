"""Numbers about a run: model FLOPs, peak FLOP/s, speed.

Shapes: L layers, N heads, H head width, T time, V vocabulary, D model width.
"""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxformer.parallel.rules import path_name

# Dense bf16 matmul peak of one JAX device, FLOP/s, by words of `device_kind` that must all occur;
# the first row that fits counts, so variants stand before their family. NVIDIA prints figures
# with 2:4 sparsity, which are halved here. Sources: the NVIDIA datasheets of each product, and
# cloud.google.com/tpu/docs/<version>, "peak compute per chip". A device of which neither is
# known is not here, and its MFU is not invented.
PEAKS: tuple[tuple[tuple[str, ...], float], ...] = (
    (("gb200",), 2500e12),
    (("b200",), 2250e12),  # HGX B200: 4.5 PFLOP/s sparse
    (("h200", "nvl"), 835.5e12),
    (("h200",), 989.4e12),
    (("gh200",), 989.4e12),
    (("h100", "nvl"), 835.5e12),
    (("h100", "pcie"), 756e12),
    (("h100",), 989.4e12),  # SXM5: 1978.9 sparse
    (("a100",), 312e12),
    (("l40s",), 362e12),
    (("l4",), 121e12),  # 242 sparse
    (("a10g",), 70e12),
    (("v100", "pcie"), 112e12),  # fp16: the V100 has no bf16 units
    (("v100",), 125e12),
    (("t4",), 65e12),  # fp16
    (("tpu", "v2"), 22.5e12),  # 45 a chip; a device is one of its two cores
    (("tpu", "v3"), 61.5e12),  # 123 a chip, two cores
    (("tpu", "v4", "lite"), 138e12),
    (("tpu", "v4"), 275e12),
    (("tpu", "v5", "lite"), 197e12),  # v5e
    (("tpu", "v5e"), 197e12),
    (("tpu", "v5"), 459e12),  # v5p
    (("tpu", "v5p"), 459e12),
    (("tpu", "v6", "lite"), 918e12),  # v6e
    (("tpu", "v6e"), 918e12),
    (("tpu7x",), 1153.5e12),  # 2307 a chip, two cores
)


def peak_flops(devices: Sequence[Any]) -> float | None:
    """Returns the dense bf16 FLOP/s of all devices together, or None if one is not known.

    Args:
      devices: JAX devices; only their `device_kind` is read.
    """
    total = 0.0
    for device in devices:
        words = set(re.split(r"[\s_-]+", device.device_kind.lower()))
        found = [peak for need, peak in PEAKS if words.issuperset(need)]
        if not found:
            return None
        total += found[0]
    return total


def matmul_parameters(params: Any) -> int:
    """Returns the number of parameters that take part in matmuls.

    Tables that are only looked up (token types, positions, and the token table when the output
    table is not tied to it) cost no FLOPs.

    Args:
      params: nested dict of arrays or shapes.
    """
    sizes = {
        path_name(path): math.prod(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    tied = not any(re.fullmatch(r"(.*/)?head/table", name) for name in sizes)
    return sum(
        size
        for name, size in sizes.items()
        if not re.match(r"(.*/)?embed/(?!projection)", name)
        or (tied and re.fullmatch(r"(discriminator/)?embed/tokens", name))
    )


def flops_per_token(num_params: int, model: Any, seq_len: int) -> float:
    """Returns the model FLOPs of one training token, forward and backward: 6 P + 12 L N H T.

    Recomputation (remat) does not count, and neither does it matter whether a mask spares half
    of the attention: it is the convention of PaLM (Chowdhery et al. 2022, appendix B).

    Args:
      num_params: P, see `matmul_parameters`.
      model: the model's config, with num_layers, num_heads, and width or per_head.
      seq_len: T.
    """
    heads = getattr(model, "num_heads", 0)  # a recurrent model has none
    if not heads:
        return 6.0 * num_params
    width = heads * getattr(model, "per_head", model.width // heads)
    return 6.0 * num_params + 12.0 * model.num_layers * width * seq_len


class Meter:
    """Steps per second over the last seconds, pauses left out.

    Steps are reported in bursts, whenever the host reads what the device has finished, so time is
    taken from burst to burst. The clock can be given for tests.
    """

    WINDOW = 20.0  # seconds that the rate looks back
    BURST = 0.02  # calls closer together than this are one burst

    def __init__(self, step: int, clock: Callable[[], float] = time.monotonic):
        self._clock, self._paused = clock, 0.0
        self._step, self._time = step, clock()
        self._points = deque([(self._time, step)])

    def update(self, step: int) -> None:
        """Notes that `step` steps have been made."""
        now = self._clock() - self._paused
        if now - self._time > self.BURST:
            self.settle()
            self._time = now
        self._step = step

    def settle(self) -> None:
        """Ends the burst: its last step was made when it began."""
        if self._points[-1][1] != self._step:
            self._points.append((self._time, self._step))
        while len(self._points) > 2 and self._time - self._points[1][0] > self.WINDOW:
            self._points.popleft()

    def resume(self) -> None:
        """Leaves out the time since the last update: it went into something else."""
        self.settle()
        self._paused = self._clock() - self._time

    @property
    def steps_per_second(self) -> float | None:
        (begin, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - begin) if end > begin else None
