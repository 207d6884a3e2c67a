"""The arrays of one checkpoint, written and read by Orbax, compared with our checksums.

Only this file touches Orbax, and only inside its functions: the import takes a quarter of a second.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxformer.checkpoint.checksums import checksums, leaf_name
from jaxformer.checkpoint.steps import DamagedError, read_meta
from jaxformer.errors import UserError

# The items of a checkpoint, apart so that parameters can be read without the optimizer's state.
_ITEMS = ("params", "ema", "rest")


def warm_up() -> threading.Thread:
    """Starts importing Orbax in the background, so that neither start nor first save waits."""
    thread = threading.Thread(target=_orbax, name="import-orbax", daemon=True)
    thread.start()
    return thread


def _orbax() -> Any:
    import orbax.checkpoint

    return orbax.checkpoint


@functools.cache
def _quieten() -> None:
    """Keeps Orbax's own words about a failure, pages of tracebacks, off the screen.

    It raises what it has to say, and we say that in one line.
    """
    logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
    warnings.filterwarnings("ignore", "coroutine '_read_.*' was never awaited", RuntimeWarning)
    hook = sys.unraisablehook

    def unraisable(fault: Any) -> None:
        # A failed read leaves coroutines behind, and reads that answer to a closed loop.
        code = getattr(fault.object, "cr_code", None)
        left_behind = code is not None and "orbax" in code.co_filename
        if not left_behind and str(fault.exc_value) != "Event loop is closed":
            hook(fault)

    sys.unraisablehook = unraisable


def open_checkpointer() -> Any:
    """Returns the asynchronous Orbax checkpointer for our items.

    We use it without Orbax's CheckpointManager, whose list of steps is kept in memory (after a full
    disk it names a step that is not there) and whose retention does not know a damaged step.
    """
    ocp = _orbax()
    _quieten()
    # Floats hardly compress: without compression the same bytes are written in a quarter of the
    # time, which on a CPU is time taken from training.
    handlers = {item: ocp.PyTreeCheckpointHandler(use_compression=False) for item in _ITEMS}
    return ocp.AsyncCheckpointer(
        ocp.CompositeCheckpointHandler(meta=ocp.JsonCheckpointHandler(), **handlers)
    )


def _items(state: Mapping[str, Any]) -> dict[str, Any]:
    items = {name: state[name] for name in ("params", "ema") if name in state}
    rest = {name: value for name, value in state.items() if name not in items}
    return {**items, "rest": rest} if rest else items


def write(checkpointer: Any, folder: str, state: Mapping[str, Any], meta: dict[str, Any]) -> None:
    """Starts writing a checkpoint; returns as soon as `state` may be donated.

    Orbax copies device memory to the host before it returns. On a CPU it takes a view instead, and
    XLA, seeing the view, gives the donated step another buffer.
    """
    ocp = _orbax()
    items = {name: ocp.args.PyTreeSave(item) for name, item in _items(state).items()}
    checkpointer.save(folder, args=ocp.args.Composite(meta=ocp.args.JsonSave(meta), **items))


def read(checkpointer: Any, folder: str, abstract: Mapping[str, Any], meta: dict[str, Any]) -> Any:
    """Reads arrays into the shardings of `abstract` and verifies them.

    Args:
      checkpointer: from `open_checkpointer`.
      folder: of one step.
      abstract: a whole state or a part of it, as `jax.ShapeDtypeStruct` with shardings.
      meta: of the same step.

    Returns:
      The same tree with arrays that are bit-equal to the saved ones.

    Raises:
      DamagedError: they are not, or cannot be read.
    """
    ocp = _orbax()
    items = {
        name: ocp.args.PyTreeRestore(
            item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item)
        )
        for name, item in _items(abstract).items()
    }
    try:
        restored = dict(checkpointer.restore(folder, args=ocp.args.Composite(**items)).items())
        rest = restored.pop("rest", {})
        state = {name: restored.get(name, rest.get(name)) for name in abstract}
        found = checksums(state)
    except (
        Exception
    ) as error:  # whatever Orbax and tensorstore raise on broken files, and that is much
        raise DamagedError(f"it cannot be read ({one_line(error)})") from None
    for name, leaf in found.items():
        if leaf != meta["leaves"].get(name):
            raise DamagedError(f"{name} does not match its checksum")
    return state


def first_intact(
    folders: Mapping[int, str],
    accept: Callable[[dict[str, Any]], Any],
    orbax: Callable[[], Any],
    say: Callable[[str], None],
) -> tuple[Any, dict[str, Any], set[int]]:
    """Reads the first of `folders` that is intact; names those before it that are not."""
    reasons: dict[int, str] = {}
    for step, folder in folders.items():
        try:
            meta = read_meta(folder)
            wanted = accept(meta)  # before Orbax is imported: a wrong config is told at once
            state = read(orbax(), folder, wanted, meta)
        except DamagedError as damage:
            reasons[step] = f"{folder}: {damage}"
            continue
        for reason in reasons.values():
            say(f"damaged checkpoint {reason}; using step {meta['step']}")
        del meta["leaves"]
        return state, meta, set(reasons)
    raise UserError(
        f"no intact checkpoint ({'; '.join(reasons.values())}); nothing was deleted: bring back a "
        "copy, or start anew with another --workdir"
    )


def abstract_of(tree: Any) -> Any:
    """Returns a tree of `jax.ShapeDtypeStruct` in which every leaf has a sharding."""

    def describe(leaf: Any) -> jax.ShapeDtypeStruct:
        sharding = getattr(leaf, "sharding", None) or one_device()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

    return jax.tree.map(describe, tree)


def one_device() -> jax.sharding.Sharding:
    """Returns the placement of an array that lies on this process's first device."""
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])


def misfits(abstract: Any, meta: Mapping[str, Any]) -> list[str]:
    """Returns a phrase per leaf whose dtype or shape, here or in the checkpoint, has no equal."""
    wanted = {
        leaf_name(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(abstract)
    }
    stored = {name: f"{dtype}{shape}" for name, (dtype, shape, _) in meta["leaves"].items()}
    return [
        f"{name}: checkpoint {stored.get(name, 'has none')}, now {wanted.get(name, 'none')}"
        for name in sorted(wanted.keys() | stored.keys())
        if wanted.get(name) != stored.get(name)
    ]


def refuse(phrases: list[str], directory: str) -> None:
    """Raises UserError with the phrases of `misfits` or `steps.differences`, if there are any."""
    if phrases:
        more = f"; and {len(phrases) - 8} more" if len(phrases) > 8 else ""
        raise UserError(
            f"the checkpoints in {directory} are of another run: {'; '.join(phrases[:8])}{more}; "
            "give the old values back, or another --workdir"
        )


def one_line(error: BaseException) -> str:
    """Returns the first line of an exception, with its type, shortened."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 200 else text[:197] + "..."
