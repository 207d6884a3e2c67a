"""A published checkpoint before an experiment's data, as it is: nothing is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from jaxformer import interop
from jaxformer.errors import UserError
from jaxformer.interop import finite
from jaxformer.train import overrides
from jaxformer.train.load import Loaded, writing
from jaxformer.train.prepare import Prepared, prepare

# The keys of our configs that add a head, and what the head gives.
_HEADS = {
    "num_classes": "classes", "num_tags": "tags", "span_head": "an answer's start and end",
    "masked_head": "hidden tokens", "next_sentence_head": "pairs of sentences",
    "discriminator_head": "replaced tokens",
}  # fmt: skip


def of_experiment(
    folder: Path,
    chosen: ConfigDict,
    assignments: list[str],
    *,
    say: Callable[[str], None],
) -> tuple[Prepared, Loaded]:
    """Prepares a published checkpoint to be judged on an experiment's data.

    The experiment gives the data and the objective; the folder gives the model, its tokenizer, and
    how it writes. Where the data has a validation source, the other files are not read.

    Args:
      folder: config.json, safetensors and a tokenizer.
      chosen: the experiment's config; its sections model, generate and train are left aside.
      assignments: changes to any section, such as "data.validation_source=dev.json".
      say: prints one line for the user.

    Returns:
      (the experiment with the folder's model, the model's parameters and how it writes).

    Raises:
      UserError: the folder or the data cannot be read, or the model lacks the head or the classes
        that the data asks for.
    """
    family, config = interop.published_config(folder)
    asked = ConfigDict(chosen.to_dict())
    with asked.unlocked():
        asked.model, asked.generate = ConfigDict({"family": family}), ConfigDict()
        asked.train = ConfigDict({"init_from": str(folder)})
        asked.data = ConfigDict({**asked.get("data", {}), "tokenizer": str(folder)})
    asked = overrides.apply(asked, assignments)
    named = {assignment.partition("=")[0] for assignment in assignments}
    if asked.data.get("validation_source") and "data.source" not in named:
        asked.data.source = asked.data.validation_source
        if asked.data.get("validation_target_source"):
            asked.data.target_source = asked.data.validation_target_source
    run = prepare(asked, say=say)
    _refuse_missing_head(folder, config, run)
    names = _class_names(folder, config, run, say)
    if names != run.dataset.info.class_names:
        asked.data.class_names = names
        run = prepare(asked, say=say)
    finite.refuse(folder)
    ours = dataclasses.asdict(run.model.config)
    changes = {key: value for key, value in ours.items() if value != getattr(config, key)}
    model, params = interop.load_huggingface(folder, **changes)
    writes, suppress, first = writing(folder, family, dict(asked.get("generate", {})))
    return run, Loaded(
        model, params, run.dataset.tokenizer, writes, run.experiment.data,
        suppress=suppress, first=first,
    )  # fmt: skip


def _refuse_missing_head(folder: Path, published: Any, run: Prepared) -> None:
    for key, gives in _HEADS.items():
        if getattr(run.model.config, key, 0) and not getattr(published, key, 0):
            raise UserError(
                f"{folder} has no head for {gives}, which objective.name={run.experiment.goal} "
                "asks for; train one: jaxformer train --config EXPERIMENT "
                f"--config.train.init_from={folder}"
            )


def _class_names(
    folder: Path, published: Any, run: Prepared, say: Callable[[str], None]
) -> tuple[str, ...]:
    """Returns the data's classes in the order of the checkpoint's.

    By their names, where config.json names all that the data has; else by their place.
    """
    ours = run.dataset.info.class_names
    if not ours:
        return ()
    theirs = interop.label_names(folder)
    spelt = {name.lower(): name for name in ours}  # as the data spell them
    if spelt.keys() <= {name.lower() for name in theirs}:
        return tuple(spelt.get(name.lower(), name) for name in theirs)
    count = getattr(published, "num_classes", 0) or getattr(published, "num_tags", 0)
    if len(ours) != count:
        raise UserError(
            f"{folder} tells {count} classes apart{_listed(theirs)}, and "
            f"data.source={run.experiment.data.source} has {len(ours)}{_listed(ours)}; name the "
            "data's in the checkpoint's order: --config.data.class_names=A,B,..."
        )
    if theirs:
        pairs = ", ".join(f"{a!r} is {b}" for a, b in zip(ours, theirs, strict=True))
        say(f"the checkpoint's classes by their place: {pairs}")
    return ours


def _listed(names: Sequence[str]) -> str:
    return f" ({', '.join(names)})" if names else ""
