"""An experiment as the code sees it: one frozen dataclass per section of the ConfigDict."""

from __future__ import annotations

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from jaxformer import checkpoint, config, data, generate, interop, models
from jaxformer.errors import UserError, one_of, suggest
from jaxformer.models import FAMILIES, Model
from jaxformer.modules import variants
from jaxformer.modules.config import TransformerConfig
from jaxformer.objectives import OBJECTIVES
from jaxformer.parallel import mesh
from jaxformer.train import optimizer


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The run itself.

    steps: updates in all. eval_every: steps between evaluations (0: only at the end); eval_tokens:
    tokens an evaluation reads, the same each time (0: the whole validation split). log_every: steps
    between records. accumulate: parts a batch is cut into. nonfinite: "skip" a step whose loss or
    gradient is not finite, or "abort" (neither reaches a checkpoint). init_from: a workdir whose
    parameters this run starts from, or the folder of a published checkpoint (config.json and
    safetensors); either also gives every key of model that the config leaves out. sample_every:
    steps between samples of text (0: only at the end).
    """

    steps: int = 1000
    eval_every: int = 0
    eval_tokens: int = 0
    log_every: int = 10
    sample_every: int = 0
    accumulate: int = 1
    nonfinite: str = "skip"
    init_from: str = ""

    def __post_init__(self):
        one_of(self.nonfinite, ("skip", "abort"), "train.nonfinite")
        for name in ("steps", "log_every", "accumulate"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 1")
        for name in ("eval_every", "eval_tokens", "sample_every"):
            if getattr(self, name) < 0:
                raise UserError(f"train.{name}={getattr(self, name)} must be at least 0 (0: off)")


SECTIONS: dict[str, type] = {
    "data": data.Config,
    "optimizer": optimizer.Config,
    "train": TrainConfig,
    "mesh": mesh.Config,
    "checkpoint": checkpoint.Config,
    "generate": generate.Config,
}
# The sections whose dataclass depends on a choice: section -> (its key, its table).
CHOICES = {"model": ("family", FAMILIES), "objective": ("name", OBJECTIVES)}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A whole experiment, checked; `family` and `goal` name the model's and objective's modules."""

    seed: int
    family: str
    goal: str
    model: Any
    objective: Any
    data: data.Config
    optimizer: optimizer.Config
    train: TrainConfig
    mesh: mesh.Config
    checkpoint: checkpoint.Config
    generate: generate.Config


def fill(chosen: ConfigDict) -> ConfigDict:
    """Returns the experiment's config with the default of every key that it left out.

    Raises:
      UserError: a section or key that does not exist, or a value of the wrong type.
    """
    known = ("seed", *CHOICES, *SECTIONS)
    for name in chosen:
        if name not in known:
            raise UserError(
                f"config.{name} is not a section{suggest(name, known)}; valid: {', '.join(known)}"
            )
    whole = ConfigDict({"seed": chosen.get("seed", 0)})
    source = str(chosen.get("train", {}).get("init_from", ""))
    for name, (key, table) in CHOICES.items():
        section = dict(chosen.get(name, {}))
        if name == "model" and source:
            section = _begun(source, section)
        pick = section.pop(key, next(iter(table)))
        one_of(pick, table, f"{name}.{key}")
        whole[name] = {key: pick, **_whole(table[pick].Config, section, name)}
    for name, cls in SECTIONS.items():
        whole[name] = _whole(cls, dict(chosen.get(name, {})), name)
    return whole


def _begun(folder: str, section: dict[str, Any]) -> dict[str, Any]:
    """Returns the model section with the values of what it begins from for what it leaves out."""
    if not interop.is_published(folder):
        model = (checkpoint.run_config(folder) or {}).get("model", {})
        # Another family than the run's takes a part of it (ELECTRA's discriminator).
        same = section.get("family", model.get("family")) == model.get("family")
        return {**model, **section} if same else section
    family, published = interop.published_config(folder)
    if section.get("family", family) != family:
        raise UserError(
            f"train.init_from={folder} holds a model.family={family}, but it is "
            f"{section['family']}; leave model.family out"
        )
    return {"family": family, **dataclasses.asdict(published), **section}


def _whole(cls: type, section: dict[str, Any], where: str) -> dict[str, Any]:
    return dataclasses.asdict(config.build(cls, section, where))


def build(chosen: ConfigDict) -> Experiment:
    """Returns the experiment of a config, with everything checked that needs no data."""
    whole = fill(chosen)
    if not isinstance(whole.seed, int):
        raise UserError(f"seed must be an int, but is {whole.seed!r}")
    sections: dict[str, Any] = {"seed": whole.seed}
    for name, (key, table) in CHOICES.items():
        section = dict(whole[name])
        pick = section.pop(key)
        sections["family" if name == "model" else "goal"] = pick
        sections[name] = config.build(table[pick].Config, section, name)
    for name, cls in SECTIONS.items():
        sections[name] = config.build(cls, dict(whole[name]), name)
    start = getattr(sections["model"], "start_id", -1)
    if start >= 0 > sections["data"].start_id:
        sections["data"] = dataclasses.replace(sections["data"], start_id=start)
    experiment = Experiment(**sections)
    _check(experiment)
    return experiment


def _check(experiment: Experiment) -> None:
    goal, reads, model = OBJECTIVES[experiment.goal], experiment.data, experiment.model
    if experiment.family not in goal.FAMILIES:
        raise UserError(
            f"objective.name={experiment.goal} needs model.family={' or '.join(goal.FAMILIES)}, "
            f"but it is {experiment.family}"
        )
    if reads.layout not in goal.LAYOUTS:
        raise UserError(
            f"objective.name={experiment.goal} reads data.layout={' or '.join(goal.LAYOUTS)}, "
            f"but it is {reads.layout}"
        )
    if reads.labels not in getattr(goal, "LABELS", (reads.labels,)):
        raise UserError(
            f"objective.name={experiment.goal} reads data.labels={' or '.join(goal.LABELS)}, "
            f"but it is {reads.labels!r}"
        )
    has_blocks = isinstance(model, TransformerConfig)  # a recurrent model's attention is another
    if experiment.family == "recurrent" and reads.layout == "seq2seq_packed":
        raise UserError(
            "model.family=recurrent reads on from one text into the next: it cannot have several "
            "in a row; set --config.data.layout=seq2seq"
        )
    choice = variants.parse(model.attention) if has_blocks else None
    if choice is not None and not choice.kind.PACKS and reads.layout.endswith("packed"):
        others = [name for name in goal.LAYOUTS if not name.endswith("packed")]
        raise UserError(
            f"model.attention={model.attention} cannot tell the texts of a row apart; "
            f"data.layout={reads.layout} has several in one: set --config.data.layout="
            f"{' or '.join(others)}"
        )
    lengths = {"seq_len": reads.seq_len}
    if reads.layout.startswith("seq2seq"):
        lengths["source_len"] = reads.source_length
    if hasattr(goal, "host_transform"):  # changes them; what comes out is checked with the data
        lengths = {}
    for key, length in lengths.items():
        if length > model.max_length:
            # A checkpoint's table of positions cannot grow.
            mend = f"model.max_length={length}"
            if experiment.train.init_from:
                mend = f"data.{key}={model.max_length}"
            raise UserError(
                f"data.{key}={length} is longer than model.max_length={model.max_length}; "
                f"try --config.{mend}"
            )
    if reads.batch_size % experiment.train.accumulate:
        raise UserError(
            f"train.accumulate={experiment.train.accumulate} does not divide "
            f"data.batch_size={reads.batch_size}"
        )


def check_mesh(experiment: Experiment, sizes: tuple[int, ...]) -> None:
    """Raises UserError if the batch or the heads do not divide over a mesh of these sizes."""
    data_size, fsdp, tensor = sizes
    part = experiment.data.batch_size // experiment.train.accumulate
    if part % (data_size * fsdp):
        raise UserError(
            f"data.batch_size={experiment.data.batch_size} in {experiment.train.accumulate} parts "
            f"is {part} rows, which the mesh's data x fsdp = {data_size * fsdp} does not divide; "
            f"try --config.data.batch_size={data_size * fsdp * experiment.train.accumulate}"
        )
    for name in ("num_heads", "kv_heads"):
        heads = getattr(experiment.model, name, 0)  # a recurrent model has none
        if heads % tensor:
            raise UserError(
                f"mesh.tensor={tensor} does not divide model.{name}={heads}; heads are split over "
                "the tensor axis"
            )


def make_model(experiment: Experiment, info: data.Info) -> Model:
    """Returns the model, its vocabulary and heads fitted to the data and the objective.

    Raises:
      UserError: a model.vocab_size smaller than the tokenizer's, or a model.start_id that the
        data's targets do not begin with.
    """
    wanted = experiment.model.vocab_size or info.vocab_size
    if wanted < info.num_rows:
        mend = "model.vocab_size=0 to take the tokenizer's"
        if source := experiment.train.init_from:
            mend = f"data.tokenizer={source} to take the checkpoint's"
        raise UserError(
            f"model.vocab_size={wanted} is smaller than the tokenizer's {info.num_rows}; "
            f"set --config.{mend}"
        )
    start = getattr(experiment.model, "start_id", -1)
    if min(start, info.start_id) >= 0 and start != info.start_id:
        raise UserError(
            f"model.start_id={start}, but the data's targets begin with {info.start_id}; "
            f"try --config.data.start_id={start}"
        )
    goal = OBJECTIVES[experiment.goal]
    asked = {"vocab_size": wanted, **goal.adapt(experiment.objective, info)}
    fields = {field.name for field in dataclasses.fields(experiment.model)}
    fitted = {key: value for key, value in asked.items() if key in fields}
    model_config = dataclasses.replace(experiment.model, **fitted)
    return models.make(model_config)
