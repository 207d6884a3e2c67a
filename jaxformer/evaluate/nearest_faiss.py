"""The neighbours of a datastore by faiss (Johnson 2017): exact in its own way, or approximate.

It is an extra: pip install "jaxformer[faiss]". D key width, Q queries, K neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxformer.errors import UserError, one_of
from jaxformer.evaluate.datastore import Datastore

KINDS = ("faiss", "faiss_ivf")
_BLOCK = 1 << 16  # keys that are handed over at one time
# Of 4 sqrt(N) clusters so many are looked into.
_PROBES = 32


def searcher(
    store: Datastore, kind: str
) -> Callable[[Datastore, np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """Returns what finds neighbours as `datastore.search` does, with an index in memory.

    Args:
      store: whose keys the index is made of; it holds them in float32.
      kind: "faiss": all keys are compared. "faiss_ivf": those of the 32 nearest clusters, which
        misses some neighbours and costs a small part.

    Raises:
      UserError: faiss is not installed, or an unknown kind.
    """
    one_of(kind, ("exact", *KINDS), "--search")
    try:
        import faiss
    except ImportError:
        raise UserError(
            f'--search={kind} needs faiss: pip install "jaxformer[faiss]"; or leave it out'
        ) from None
    index = _index(faiss, store.keys_ND, kind)

    def search(
        store: Datastore, q_QD: np.ndarray, neighbours: int
    ) -> tuple[np.ndarray, np.ndarray]:
        distances_QK, index_QK = index.search(np.ascontiguousarray(q_QD, np.float32), neighbours)
        missing_QK = index_QK < 0
        values_QK = store.values_N[np.where(missing_QK, 0, index_QK)]
        return np.where(missing_QK, np.inf, np.maximum(distances_QK, 0.0)), values_QK

    return search


def _index(faiss: Any, keys_ND: np.ndarray, kind: str) -> Any:
    N, D = keys_ND.shape
    index = faiss.IndexFlatL2(D)
    lists = int(4 * N**0.5)
    if kind == "faiss_ivf" and N // lists >= 40:  # clusters are not learnt from fewer
        index = faiss.IndexIVFFlat(index, D, lists, faiss.METRIC_L2)
        index.nprobe = min(_PROBES, lists)
        sample = np.linspace(0, N - 1, min(N, 64 * lists)).astype(np.int64)
        index.train(np.ascontiguousarray(keys_ND[sample], np.float32))
    for start in range(0, N, _BLOCK):
        index.add(np.ascontiguousarray(keys_ND[start : start + _BLOCK], np.float32))
    return index
