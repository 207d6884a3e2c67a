"""Everything about an experiment that does not depend on its parameters' values."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from ml_collections import ConfigDict

from jaxformer import data, interop
from jaxformer.data import corruption
from jaxformer.errors import UserError
from jaxformer.evaluate.embed import embed_texts
from jaxformer.models import Model
from jaxformer.objectives import OBJECTIVES
from jaxformer.parallel import mesh as meshes
from jaxformer.train.experiment import Experiment, build, check_mesh, fill, make_model


class Prepared(NamedTuple):
    """An experiment with its mesh, data and model, ready to train, evaluate or generate."""

    config: ConfigDict  # with every default filled in
    experiment: Experiment
    mesh: Mesh
    dataset: data.Dataset
    model: Model
    loss_fn: Callable[..., Any]

    @property
    def param_shapes(self) -> Any:
        """The parameters as shapes; nothing is allocated."""
        return jax.eval_shape(self.model.init, jax.eval_shape(lambda: jax.random.key(0)))

    @property
    def batch_sharding(self) -> NamedSharding:
        return meshes.batch_sharding(self.mesh)

    @property
    def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """One batch of the training split as shapes with their sharding."""
        batch = self.dataset.train.batch(0, self.experiment.seed)
        return {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.batch_sharding)
            for name, x in batch.items()
        }

    @property
    def can_generate(self) -> bool:
        return self.experiment.goal in ("causal_lm", "seq2seq")

    @property
    def predicts_text(self) -> bool:
        """Whether the loss is the likelihood of text, so that perplexity means something."""
        return getattr(OBJECTIVES[self.experiment.goal], "PREDICTS_TEXT", False)

    @property
    def baseline(self) -> tuple[str, float] | None:
        """What a model that looks at no context reaches: its name and its loss."""
        if not self.predicts_text:
            return None
        return "unigram entropy", self.dataset.info.unigram_entropy


def prepare(chosen: ConfigDict, *, say: Callable[[str], None]) -> Prepared:
    """Checks the config, then loads the data and makes the model; cheap mistakes come first.

    Raises:
      UserError: anything that the user can mend.
    """
    experiment = build(chosen)
    mesh = meshes.make(experiment.mesh)
    check_mesh(experiment, tuple(mesh.shape.values()))
    dataset = load(experiment, say=say)
    model = make_model(experiment, dataset.info)
    goal = OBJECTIVES[experiment.goal]
    loss_fn = goal.make(experiment.objective, model, dataset.info)
    whole = fill(chosen)
    # What the data decided (the vocabulary, the classes) is kept with the run, so that its model
    # can be made again without the data, and other data number the classes as these do.
    whole.model.update(dataclasses.asdict(model.config))
    if dataset.info.class_names:
        whole.data.class_names = dataset.info.class_names
    return Prepared(whole, experiment, mesh, dataset, model, loss_fn)


def load(experiment: Experiment, *, say: Callable[[str], None]) -> data.Dataset:
    """Returns the data, changed on the host if the objective asks for it.

    Raises:
      UserError: the data cannot be had, or cannot be changed so.
    """
    dataset = data.load(experiment.data, say=say, embed=_embedder(experiment.data.retrieval))
    goal = OBJECTIVES[experiment.goal]
    if not hasattr(goal, "host_transform"):
        return dataset
    kind, options = goal.host_transform(experiment.objective)
    transform = corruption.make(kind, dataset.tokenizer, experiment.data, **options)
    dataset = dataset.transformed(transform)
    rows = dataset.train.batch(0, experiment.seed)
    longest = max(rows[name].shape[1] for name in ("tokens", "source") if name in rows)
    if longest > experiment.model.max_length:
        # A checkpoint's table of positions cannot grow.
        given = experiment.train.init_from
        mend = "make data.seq_len smaller" if given else f"try --config.model.max_length={longest}"
        raise UserError(
            f"objective.name={experiment.goal} makes rows of {longest} tokens of data.seq_len="
            f"{experiment.data.seq_len}, longer than model.max_length="
            f"{experiment.model.max_length}; {mend}"
        )
    return dataset


def _embedder(folder: str) -> Callable[[Sequence[str]], np.ndarray]:
    """Returns what makes vectors of texts by a published encoder, which is loaded when it is used.

    Its hidden states are averaged over a text's tokens (RETRO's frozen BERT; Borgeaud 2022, sec.
    2.2).
    """

    def embed(texts: Sequence[str]) -> np.ndarray:
        model, params = interop.load_huggingface(Path(folder).expanduser())
        tokenizer = data.load_tokenizer(folder)
        return embed_texts(model, params, tokenizer, texts, pooling="mean")

    return embed
