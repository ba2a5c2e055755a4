"""benchmark=cpu: a run times its saved model, by the real command line; its times are no part of its identity."""

import json
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

from pruning.runtime import compiler
from results import columns
from runner.config.compose import compose_experiment
from runner.experiment import run
from runner.records import card
from runner.records.result import Result
from runner.speed import measure, runtimes
from runner.speed.runtimes import default_precisions
from runner.speed.timing import Timing
from runner.stages.benchmark import time_finished
from runner.system import files
from runner.system.errors import UserError
from tests.conftest import FINISHED, Cli, Refused, check_refusal, cli_in, copy_run, save_small_model

TIMED = ("benchmark=cpu", "benchmark.seconds=0", "benchmark.length=[16]")
DENSE = (
    "model=hub", "prune=false", "dataset=demo", "dataset.train_examples=32", "dataset.eval_examples=40",
    "finetune.max_steps=2", "finetune.per_device_train_batch_size=8", *TIMED,
)  # fmt: skip


def command(place: Path) -> tuple[str, ...]:
    """The command of `finished_run`, for its model in `place`."""
    return ("-m", "runner", "model=hub", f"model.path={place / 'small-model'}", *FINISHED)


def folder_in(place: Path) -> Path:
    """The folder of the one finished run in `place`."""
    (file,) = (place / "outputs").glob("*/result.json")
    return file.parent


def stored(place: Path, table: str) -> dict[str, Any]:
    """Keys and values of the one run in the MLflow store of `place`."""
    with closing(sqlite3.connect(place / "mlflow.db")) as store:
        return dict(store.execute(f"select key, value from {table}"))


@pytest.fixture(scope="module")
def timed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the run of `finished_run` has finished with benchmark=cpu."""
    place = tmp_path_factory.mktemp("timed")
    save_small_model(place / "small-model")
    done = cli_in(place)(*command(place), *TIMED)
    assert done.returncode == 0, done.stderr
    assert "timing the saved model on this CPU, about 0 s" in done.stderr
    assert "time, batch 1, length 16, threads 1" in done.stdout  # in the summary
    return place


def test_times_are_in_result_json_and_in_mlflow(timed: Path) -> None:
    result = Result.load(folder_in(timed) / "result.json")
    assert result is not None
    assert result.speed is not None
    names = {f"{t.runtime} {t.precision}" for t in result.speed.timings}
    assert {"torch float32", "torch bfloat16"} <= names
    if compiler.supported() and compiler.compilers():
        assert {f"{columns.SPARSE} {precision}" for precision in default_precisions()} <= names
    metrics, tags = stored(timed, "latest_metrics"), stored(timed, "tags")
    expected = {}
    for each in result.speed.timings:
        assert type(each) is Timing
        assert (each.batch, each.length, each.threads) == (1, 16, 1)
        name = f"{each.runtime.lower().replace(' ', '_')}_{each.precision}_b1_l16_t1"
        expected |= {f"latency/{name}": each.ms, f"speedup/{name}": each.ratio_to_best_dense}
    assert {k: v for k, v in metrics.items() if k.startswith(("latency/", "speedup/"))} == expected
    assert len(expected) == 2 * len(names)
    assert tags["prune_distill.cpu"] == result.speed.machine.cpu
    assert result.cost["seconds"]["benchmark"] > 0
    assert [key for key in stored(timed, "params") if key.startswith("benchmark")] == []


def test_the_model_card_has_the_table_and_the_command_that_repeats_it(timed: Path, cli: Cli) -> None:
    folder = folder_in(timed)
    result = Result.load(folder / "result.json")
    assert result is not None
    assert result.speed is not None
    section = (folder / "model" / "README.md").read_text().split("## Speed\n")[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        [f"{t.runtime} {t.precision}", "1", "16", "1", f"{t.ms:.2f}", f"{t.ratio_to_best_dense:.2f}x"]
        for t in result.speed.timings
    ]
    (line,) = (line for line in section.splitlines() if line.startswith("python "))
    assert line == "python -m runner.benchmark FOLDER --batch 1 --length 16 --threads 1"
    again = cli(*line.replace("FOLDER", str(folder / "model")).split()[1:], "--seconds", "0", "--json")
    assert again.returncode == 0, again.stderr
    assert {(t["batch"], t["length"], t["threads"]) for t in json.loads(again.stdout)} == {(1, 16, 1)}


def test_times_are_added_to_a_card_where_a_timed_run_has_them(timed: Path) -> None:
    folder = folder_in(timed)
    result = Result.load(folder / "result.json")
    assert result is not None
    assert result.speed is not None
    text = (folder / "model" / "README.md").read_text()
    section = "## Speed\n" + text.split("## Speed\n")[1].split("## How it was made")[0]
    assert card.with_speed(text.replace(section, ""), result.speed) == text
    assert card.with_speed("# By hand\n", result.speed) == f"# By hand\n\n{section.strip()}\n"
    assert card.with_speed("# By hand\n", replace(result.speed, timings=[])) == "# By hand\n"


def test_a_run_without_benchmark_is_the_same_run(timed: Path, finished_run: Path) -> None:
    assert folder_in(timed).name == folder_in(finished_run).name  # which has the identity
    before = (folder_in(timed) / "result.json").read_bytes()
    done = cli_in(timed)(*command(timed))
    assert done.returncode == 0, done.stderr
    assert "already finished" in done.stderr
    assert "python -m runner.benchmark" not in done.stderr
    assert "time, batch 1, length 16, threads 1" in done.stdout
    assert (folder_in(timed) / "result.json").read_bytes() == before


def test_a_finished_run_is_timed_and_nothing_else_of_it_changes(finished_run: Path, cli: Cli, tmp_path: Path) -> None:
    copy_run(finished_run, tmp_path)
    folder = folder_in(tmp_path)
    before = json.loads((folder / "result.json").read_text())
    untimed, metrics = (folder / "model" / "README.md").read_text(), stored(tmp_path, "latest_metrics")
    weights = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    done = cli(*command(tmp_path), *TIMED)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("already finished") == 1
    assert done.stderr.count("timing the saved model on this CPU, about 0 s") == 1
    assert "time, batch 1, length 16, threads 1" in done.stdout  # in the summary
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == weights
    after = Result.load(folder / "result.json")
    assert after is not None
    assert after.speed is not None
    plain = json.loads((folder / "result.json").read_text())
    assert plain["cost"]["seconds"].pop("benchmark") > 0
    changed = {key for key in plain if plain[key] != before[key]}
    assert changed == {"speed", files.CHECKSUM}

    added = dict(stored(tmp_path, "latest_metrics").items() - metrics.items())
    assert added.pop("seconds/benchmark") > 0
    names = [f"{t.runtime.lower().replace(' ', '_')}_{t.precision}_b1_l16_t1" for t in after.speed.timings]
    assert added.keys() == {f"{kind}/{name}" for name in names for kind in ("latency", "speedup")}
    tags = stored(tmp_path, "tags")
    assert tags["prune_distill.cpu"] == after.speed.machine.cpu
    assert "time, batch 1, length 16, threads 1" in tags["mlflow.note.content"]

    text = (folder / "model" / "README.md").read_text()
    section = text.split("## Speed\n")[1].split("## How it was made")[0]
    assert section.count("| torch float32 | 1 | 16 | 1 | ") == 1
    assert text.replace(f"## Speed\n{section}", "") == untimed
    (logged,) = tmp_path.rglob(columns.CARD)
    assert logged.read_text() == text

    bytes_before = (folder / "result.json").read_bytes()
    again = cli(*command(tmp_path), "benchmark=cpu", "benchmark.seconds=0", "benchmark.length=[8,16]")
    assert again.returncode == 0, again.stderr
    relative = folder.relative_to(tmp_path)
    expected = f"timed before, in other settings; python -m runner.benchmark {relative} times it in any"
    assert again.stderr.count(expected) == 1
    assert "in other settings" not in cli(*command(tmp_path), *TIMED).stderr
    assert (folder / "result.json").read_bytes() == bytes_before


def test_a_finished_run_is_not_timed_at_a_length_that_its_model_refuses(
    finished_run: Path, cli: Cli, tmp_path: Path
) -> None:
    copy_run(finished_run, tmp_path)
    folder = folder_in(tmp_path)
    before = (folder / "result.json").read_bytes()
    done = cli(*command(tmp_path), "benchmark=cpu", "benchmark.length=[16,600]")
    assert done.returncode == 1
    check_refusal(done.stderr[done.stderr.index("error: ") :])
    assert "benchmark.length=[16, 600]: the model has positions for 512 tokens; give 512 or less" in done.stderr
    assert (folder / "result.json").read_bytes() == before


def test_a_finished_run_that_mlflow_does_not_have_yet_is_timed_later(
    finished_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_run(finished_run, tmp_path)
    monkeypatch.chdir(tmp_path)
    experiment, _ = compose_experiment([*command(tmp_path)[2:], *TIMED])
    result = Result.load(folder_in(tmp_path) / "result.json")
    assert result is not None
    replace(result, mlflow_run=None).save()
    assert time_finished(experiment, result).speed is None
    assert "benchmark=cpu: not timed, as the run is not uploaded to MLflow yet; repeat this once it is" in caplog.text
    replace(result, mlflow_run="0" * 32).save()
    with pytest.raises(UserError, match="0" * 32):  # no such run: what was measured is not half recorded
        time_finished(experiment, result)
    saved = Result.load(folder_in(tmp_path) / "result.json")
    assert saved is not None
    assert saved.speed is None
    assert "## Speed" not in (folder_in(tmp_path) / "model" / "README.md").read_text()


def test_a_dry_run_announces_the_benchmark(finished_run: Path, cli: Cli, tmp_path: Path) -> None:
    copy_run(finished_run, tmp_path)
    more = ("benchmark=cpu", "benchmark.length=[16,32]", "benchmark.batch=[1,8]", "benchmark.seconds=3")
    done = cli(*command(tmp_path), *more, "dry_run=true")
    assert done.returncode == 0, done.stderr
    assert (
        "time of the benchmark: about 12 s, and the making of the runtimes (lengths 16, 32; 4 combinations)"
        in done.stdout
    )
    assert "time of the benchmark" not in cli(*command(tmp_path), "dry_run=true").stdout


def test_a_runtime_that_fails_is_logged_and_the_rest_are_timed(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = runtimes.torch_dense

    def failing(model: PreTrainedModel, precision: str, compiled: bool) -> runtimes.Runtime:
        if precision == "bfloat16":
            raise RuntimeError("no such operator")
        return made(model, precision, compiled)

    monkeypatch.setattr(runtimes, "torch_dense", failing)
    monkeypatch.chdir(tmp_path)
    result = run(*compose_experiment([f"model.path={small_model}", *DENSE]))
    assert "torch bfloat16 is not timed: RuntimeError: no such operator" in caplog.text
    assert result.speed is not None
    names = {f"{t.runtime} {t.precision}" for t in result.speed.timings}
    assert "torch float32" in names
    assert "torch bfloat16" not in names
    assert "## Speed" in (Path(result.folder) / "model" / "README.md").read_text()


def test_a_benchmark_that_fails_as_a_whole_does_not_fail_the_run(
    small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise MemoryError("no more memory")

    monkeypatch.setattr(measure, "measure", failing)
    monkeypatch.chdir(tmp_path)
    result = run(*compose_experiment([f"model.path={small_model}", *DENSE]))
    assert "benchmark=cpu: the saved model could not be timed: MemoryError: no more memory" in caplog.text
    saved = Result.load(Path(result.folder) / "result.json")
    assert saved is not None
    assert saved.speed is None
    assert saved.dense == result.dense
    assert "## Speed" not in (Path(result.folder) / "model" / "README.md").read_text()
    assert "prune_distill.cpu" not in stored(tmp_path, "tags")


@pytest.mark.parametrize(("value", "words"), [
    ("length=[16,600]", "benchmark.length=[16, 600]: the model has positions for 512 tokens; give 512 or less"),
    ("precisions=[float8]", "benchmark.precisions=['float8']: give [auto], or some of float32, bfloat16, int8"),
    ("seconds=-1", "benchmark.seconds=-1: give seconds from 0"),
])  # fmt: skip
def test_values_that_make_no_sense_are_refused_before_training(
    value: str, words: str, refused: Refused, small_model: Path
) -> None:
    given = ("model=hub", f"model.path={small_model}", "dataset=demo", "benchmark=cpu", f"benchmark.{value}")
    assert words in refused(*given)
    assert words in refused(*given, "dry_run=true")
