"""Checkpoints that say when they are damaged, and a workdir that one process holds."""

from jaxformer.checkpoint.arrays import warm_up
from jaxformer.checkpoint.checkpointer import Checkpointer, Config
from jaxformer.checkpoint.lock import WorkdirLock
from jaxformer.checkpoint.params import restore_params, run_config

__all__ = ["Checkpointer", "Config", "WorkdirLock", "restore_params", "run_config", "warm_up"]
