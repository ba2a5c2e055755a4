"""What `python -m runner` does before a run begins costs little more than Hydra's own work and one import of torch.

Held by what is imported and copied, not by the clock: that is the same on every machine.
"""

from pathlib import Path

import pytest

from runner.config.compose import compose, register
from tests.conftest import Cli

# Needed to train, to read data or to track, and not to compose. Each takes a tenth of a second to several.
HEAVY = {
    "accelerate", "datasets", "evaluate", "huggingface_hub", "matplotlib", "mlflow", "pandas", "pyarrow", "rich",
    "scipy", "sklearn", "sqlalchemy", "sympy", "tokenizers", "transformers",
}  # fmt: skip


def imported(report: str) -> set[str]:
    """Top-level packages in the report of `python -X importtime`."""
    lines = (line for line in report.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize(("arguments", "status", "text"), [
    (["--help", "--config-dir", "."], 0, "Groups: GROUP=OPTION chooses"),
    (["--cfg", "job"], 0, "per_device_train_batch_size"),
    (["--cfg", "job", "--resolve", "model=bert-base", "pattern=2:4"], 0, "google-bert/bert-base-uncased"),
    (["pattern.rows=many"], 1, "pattern.rows=many: a whole number is needed"),
    (["model=hub"], 1, "model=hub needs model.path"),
    (["pattern.target_sparsity=7"], 1, "target_sparsity=7"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)  # fmt: skip
def test_nothing_heavy_is_imported_to_compose(cli: Cli, arguments: list[str], status: int, text: str) -> None:
    done = cli("-X", "importtime", "-m", "runner", *arguments)
    assert done.returncode == status, done.stderr[-2000:]
    assert text in done.stdout + done.stderr
    seen = imported(done.stderr)
    assert {"hydra", "torch", "runner", "pruning"} <= seen  # the report was read
    assert seen & HEAVY == set()


@pytest.mark.parametrize(("arguments", "status", "text"), [
    (["pattern=nonsense"], 1, "there is no pattern/nonsense"),
    (["-m", "dataset=squad,sqad"], 1, "did you mean dataset=squad?"),
    (["train.lr=3"], 1, "did you mean train.learning_rate?"),
    (["model=hub", "model.path=./smal-model"], 1, "there is no such folder; did you mean small-model?"),
    (["model.sparse=/no/such"], 1, "model.sparse=/no/such: there is no such folder"),
    (["dataset=squad", "dataset.path=/no/such"], 1, "dataset.path=/no/such: there is no such file or folder"),
    (["--help"], 0, "Groups: GROUP=OPTION chooses"),
    (["--version"], 0, "prune-distill"),
], ids=lambda value: " ".join(value) if isinstance(value, list) else None)  # fmt: skip
def test_a_mistake_of_spelling_and_the_help_need_the_standard_library_alone(
    cli: Cli, tmp_path: Path, arguments: list[str], status: int, text: str
) -> None:
    (tmp_path / "small-model").mkdir()
    done = cli("-X", "importtime", "-m", "runner", *arguments)
    assert done.returncode == status, done.stderr[-2000:]
    assert text in done.stdout + done.stderr
    seen = imported(done.stderr)
    assert {"runner", "difflib"} <= seen  # the report was read
    assert seen & {*HEAVY, "torch", "hydra", "omegaconf", "numpy", "pruning"} == set()


# Counts the schemas that are copied in other ways than to be filled: these copies go through ConfigStore.load.
COUNT = """
from contextlib import suppress
from hydra.core.config_store import ConfigNode, ConfigStore

copies = []
ConfigNode.__deepcopy__ = lambda node, memo: copies.append(node.name) or node
from runner.__main__ import main

with suppress(SystemExit):  # --help ends so
    main()
stored = [node for group in ConfigStore.instance().repo["schema"].values() if isinstance(group, dict) for node in group]
print(f"{len(stored)} schemas, {len(copies)} copies")
"""


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help", "--config-dir", "."], ["--cfg", "job"]], ids=" ".join)
def test_listing_and_composing_do_not_copy_the_store(cli: Cli, arguments: list[str]) -> None:
    """Hydra would copy every schema some 150 times for --help: half of the time that it took."""
    done = cli("-c", COUNT, *arguments)
    assert done.returncode == 0, done.stderr
    counted = done.stdout.splitlines()[-1].split()
    assert int(counted[0]) >= 25  # there is something to copy
    assert counted[2:] == ["0", "copies"]


def test_what_is_composed_is_a_copy_of_the_schema() -> None:
    """The store is shared by all that read it, so nobody may write into it."""
    register()
    first = compose(["model=tiny", "dataset=demo"])
    before = first.train.logging_steps
    first.train.logging_steps = 17
    first.model.excluded.append("everything")
    again = compose(["model=tiny", "dataset=demo"])
    assert again.train.logging_steps == before != 17
    assert again.model.excluded == []
