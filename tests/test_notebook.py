"""The notebook runs from top to bottom, and draws."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parent.parent / "experiments" / "notebooks" / "ops.ipynb"


def test_the_stored_notebook_has_no_outputs():
    nbformat = pytest.importorskip("nbformat")
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own backend puts out pictures
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[2]))  # this jaxformer, installed or not
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    runner = nbclient.NotebookClient(
        notebook,
        timeout=300,
        kernel_name="python3",
        resources={"metadata": {"path": NOTEBOOK.parent}},
    )
    runner.execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pictures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 6
    printed = "".join(output.get("text", "") for output in outputs)
    assert "output at padding: 0.0" in printed
    assert "stderr" not in {output.get("name") for output in outputs}  # no warnings
