"""`from runner import run, compose, results`: what the command line does, in a process that stays as it was."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pandas
import pytest
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.version import VersionBase
from omegaconf import OmegaConf

import runner
from pruning import Block, NofM
from runner import UserError, compose, results, run
from runner.config.experiment import Experiment
from runner.config.schemas import RESOLVERS
from runner.records.result import Result
from tests.conftest import FINISHED, ROOT, Cli, copy_run


def state_of_the_process() -> dict[str, object]:
    """What a library must leave alone."""
    Plugins.instance()  # Hydra's own, which store their options once
    root, store = logging.getLogger(), ConfigStore.instance()
    loggers = [root, *map(logging.getLogger, ("runner", "pruning", "huggingface_hub", "datasets"))]
    return {
        "folder": os.getcwd(),
        "logging": [(logger.level, logger.propagate) for logger in loggers],
        "handlers": list(root.handlers),
        "records": logging.getLogRecordFactory(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "warnings": list(warnings.filters),
        "running": GlobalHydra.instance().hydra,
        "version": VersionBase.instance().getbase(),
        "stored": {group: list(nodes) for group, nodes in store.repo.items() if isinstance(nodes, dict)},
        "patched": ["__deepcopy__" in vars(ConfigStore), "get_type" in vars(store)],
        "resolvers": [OmegaConf.has_resolver(name) for name in RESOLVERS],
    }


def test_compose_gives_the_checked_configuration_and_leaves_no_trace() -> None:
    before = state_of_the_process()
    experiment = compose("model=tiny", "dataset=demo", "pattern=8x2", "train.learning_rate=3e-4")
    assert isinstance(experiment, Experiment)
    assert (experiment.pattern, experiment.train.learning_rate) == (Block(8, 2, target_sparsity=0.8), 3e-4)
    assert compose("pattern=2:4").pattern == NofM(2, 4)
    assert state_of_the_process() == before


def test_compose_works_inside_an_application_of_hydra(tmp_path: Path) -> None:
    import hydra

    (tmp_path / "config.yaml").write_text("theirs: 1\n")
    with hydra.initialize_config_dir(str(tmp_path), version_base="1.2"):
        before = state_of_the_process()
        assert compose("pattern=2:4").pattern == NofM(2, 4)
        assert state_of_the_process() == before
        assert hydra.compose("config") == {"theirs": 1}


@pytest.mark.parametrize(("overrides", "message"), [
    (["model=tiny", "patern=4x1"], "patern=4x1: there is no key patern; did you mean pattern?"),
    (["pattern=5y1"], "there is no pattern/5y1"),
    (["pattern.target_sparsity=7"], "target_sparsity=7"),
    (["schedule.frequency=never"], "schedule.frequency='never'"),  # the engine's message, with its key
    (["pattern=4x1,2:4"], "pattern=4x1,2:4: these are several values; call run\\(\\) for each of them"),
    (["-m"], "-m: an override is KEY=VALUE"),
    (["model=hub"], "model=hub needs model.path"),
])  # fmt: skip
def test_a_mistake_is_raised_as_the_command_line_reports_it(overrides: list[str], message: str) -> None:
    before = state_of_the_process()
    for call in (compose, run):
        with pytest.raises(UserError, match=message) as raised:
            call(*overrides)
        assert raised.value.__cause__ is None
        assert raised.value.__suppress_context__
    assert state_of_the_process() == before


def test_the_message_is_that_of_the_command_line(cli: Cli) -> None:
    for override in ("pattern=nonsense", "pattern.target_sparsity=7", "train.patience=0"):
        with pytest.raises(UserError) as raised:
            compose("model=tiny", "dataset=demo", override)
        done = cli("-m", "runner", "model=tiny", "dataset=demo", override)
        assert done.stderr == f"error: {raised.value}\n"


@pytest.mark.parametrize(("given", "message"), [
    (["model=tiny", "dataset=demo"], r"such as 'model=bert-mini'; a list of them is given as run\(\*overrides\)"),
    (None, "None: an override is a text, such as 'model=bert-mini'$"),
    ({"model": "tiny"}, "{'model': 'tiny'}: an override is a text"),
    (Path("model=tiny"), "an override is a text"),
])  # fmt: skip
def test_what_is_no_override(given: Any, message: str) -> None:
    for call in (compose, run):
        with pytest.raises(UserError, match=message):
            call(given)


def test_what_run_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="dry_run=true: run\\(\\) returns a result; use compose"):
        run("model=tiny", "dataset=demo", "dry_run=true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="start several ranks with `torchrun -m runner"):
        run("model=tiny", "dataset=demo")


def test_a_run_gives_the_result_of_the_command_and_leaves_no_trace(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice in this process, the second time in a thread, against the run of the command line."""
    (theirs,) = (finished_run / "outputs").glob("*/result.json")
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished_run / "small-model", "small-model")
    before, made = state_of_the_process(), []

    def once(seed: int) -> None:
        made.append(run("model=hub", "model.path=small-model", *FINISHED, f"seed={seed}"))

    once(1)
    thread = threading.Thread(target=once, args=(0,))
    thread.start()
    thread.join()
    assert state_of_the_process() == before
    command, ours = Result.load(theirs), made[1]
    assert command is not None
    assert (ours.dense, ours.sparse, ours.identity) == (command.dense, command.sparse, command.identity)
    assert ours.stages == command.stages  # a hash of what each stage made
    assert made[0].identity != ours.identity
    log = (tmp_path / ours.folder / "run.log").read_text()
    assert "pattern 4x1, seed 0" in log
    assert "seed 1" not in log
    assert [row.seeds for row in results()] == [[0, 1]]


def test_log_lines_go_to_the_handlers_of_the_process(
    finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(copy_run(finished_run, tmp_path))
    monkeypatch.setattr(logging.getLogger(), "handlers", [caplog.handler])  # none that another test left
    run("model=hub", f"model.path={finished_run}/small-model", *FINISHED)
    assert "already finished" in caplog.text
    assert capfd.readouterr().err == ""


def test_the_rows_of_the_table(finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.chdir(copy_run(finished_run, tmp_path))
    listed = json.loads(cli("-m", "results", "--format", "json").stdout)
    (row,) = rows = results()
    assert (row.sparse_mean, row.seeds, row.drop_interval) == tuple(
        listed[0][name] for name in ("sparse_mean", "seeds", "drop_interval")
    )
    frame = pandas.DataFrame(rows)
    assert frame.loc[0, "pattern"] == "4x1"
    assert frame["sparse_mean"].tolist() == [row.sparse_mean]
    assert results(f"sqlite:///{tmp_path}/mlflow.db", intervals=False, pattern="4x*")[0].drop_interval is None
    assert len(results(Path("mlflow.db"), intervals=False, pattern=["2:4", "4x*"])) == 1
    assert any(row.published for row in results(published=True))
    calls: list[tuple[dict[str, Any], str]] = [
        ({"pattern": "2:4"}, "no run matches --pattern 2:4; there are: 4x1"),
        ({"modle": "x"}, r"results\(modle=...\): there is no such filter; there are model, dataset"),
        ({"experiment": "nope"}, "nope"),
        ({"tracking_uri": Path("none.db")}, "there is no MLflow database .*none.db: .* as tracking_uri"),
        ({"tracking_uri": "mlflow.db"}, "mlflow.db is a file, not the URI of a store: write sqlite:///mlflow.db"),
        ({"tracking_uri": 3}, r"results\(tracking_uri=3\): give a URI such as 'sqlite:///mlflow.db', or a path"),
        ({"model": 3}, r"results\(model=3\): give a text, such as 'bert-\*'"),
        ({"pattern": ["4x1", None]}, r"results\(pattern=\['4x1', None\]\): give a text"),
        ({"tags": "team=mine"}, r"results\(tags='team=mine'\): give a mapping of MLflow's tags"),
        ({"tracking_uri": "sqlite:///none.db"}, "there is no MLflow database .*none.db: .* as tracking_uri"),
    ]
    for call, message in calls:
        with pytest.raises(UserError, match=message):
            results(**call)
    assert not (tmp_path / "none.db").exists()


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'runner' has no attribute 'walk'"):
        _ = runner.walk  # type: ignore[attr-defined]


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, runner; print(sorted({'torch', 'hydra', 'mlflow', 'transformers'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "[]\n"
