"""docs/sweep.ipynb: stored without outputs, and its cells run in order."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOK = json.loads((ROOT / "docs" / "sweep.ipynb").read_text(encoding="utf-8"))
CODE = [cell for cell in NOTEBOOK["cells"] if cell["cell_type"] == "code"]


def test_no_output_is_stored() -> None:
    assert NOTEBOOK["nbformat"] == 4
    assert len(CODE) >= 4
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in CODE)
    assert len({cell["id"] for cell in NOTEBOOK["cells"]}) == len(NOTEBOOK["cells"])


@pytest.mark.slow
def test_the_cells_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(CODE, 1):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
    assert sorted(names["table"]["pattern"]) == ["2:4", "4x1"]
    assert names["table"]["sparse_mean"].between(0, 1).all()
    assert sum(int((weight == 0).sum()) for weight in names["model"].parameters()) > 10_000
    assert names["answer"] in names["context"].lower()
    assert names["answer"]
