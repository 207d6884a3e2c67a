"""Every row of the ledger keeps its bounds."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from tests.parity.case import measure
from tests.parity.families import CASES


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_parity(case, tmp_path):
    assert measure(case, tmp_path).complaints() == []


def test_three_configurations_of_each_family():
    families = [case.family for case in CASES]
    assert {name: families.count(name) for name in set(families) if families.count(name) < 3} == {}
