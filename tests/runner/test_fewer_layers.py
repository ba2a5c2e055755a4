"""Runs whose student has some of the dense model's layers: what they save, record and show."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

from runner.config.compose import compose_experiment
from runner.data.demo import Demo
from runner.inspect import inspect
from runner.records.identity import Contents, identify
from runner.stages.checks import check
from runner.stages.inputs import find_sources
from runner.stages.prune import PruningTask, train_student
from runner.stages.teacher import supervision_of
from runner.training.training_data import TrainingData
from tests.conftest import FINISHED, Cli, Refused, cli_in, save_small_model
from tests.training import Interrupt, Recorder

QA = "AutoModelForQuestionAnswering"
LAYER = "bert.encoder.layer"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of 6 layers."""
    return save_small_model(tmp_path_factory.mktemp("small") / "model", num_hidden_layers=6)


def composed(small: Path, *overrides: str) -> Any:
    given = ("model=hub", f"model.path={small}", *FINISHED, "train.precision=float32", *overrides)
    return compose_experiment(list(given))[0]


def data_of(experiment: Any) -> TrainingData:
    examples, tokenizer = Demo(train_examples=32, eval_examples=4).read().train, None
    assert examples is not None
    tokenizer = AutoTokenizer.from_pretrained(experiment.model.path)
    return TrainingData(Demo(), Demo().features(examples, tokenizer, None, labels=True), tokenizer)


# --- identity and teacher -----------------------------------------------------------------------------------


def identity(small: Path, *overrides: str) -> Any:
    experiment = composed(small, *overrides)
    chosen = find_sources(experiment).chosen
    return identify(experiment, Contents("m", "d", layers=chosen.layers if chosen else None))


def test_layers_make_another_run_of_the_same_dense_model_and_control(small: Path) -> None:
    whole, fewer = identity(small), identity(small, "model.num_layers=3")
    assert fewer.run != whole.run
    assert fewer.group != whole.group
    assert (fewer.dense, fewer.control, fewer.budget) == (whole.dense, whole.control, whole.budget)
    assert identity(small, "model.layers=[0,2,5]") == fewer  # however they are named
    assert identity(small, "model.layers=[0,2,4]").run != fewer.run
    assert identity(small, "model.num_layers=6") == whole


def test_states_are_compared_with_those_of_the_origin_unless_another_model_is_the_teacher(small: Path) -> None:
    experiment = composed(small, "distill=hidden", "model.layers=[0,1,4]")
    sources = find_sources(experiment)
    data = data_of(experiment)
    taught = supervision_of(experiment, data, [sources.base], sources.chosen)
    assert vars(taught.distillation)["layers"] == {0: 0, 1: 1, 2: 2, 3: 5}
    assert taught.teacher is not None
    assert taught.teacher.config.num_hidden_layers == 6
    other = composed(small, "distill=hidden", "model.layers=[0,1,4]", f"distill.teacher={small}")
    assert vars(supervision_of(other, data, [sources.base], sources.chosen).distillation)["layers"] == {}
    named = composed(small, "distill=hidden", "model.layers=[0,1,4]", "+distill.layers={3: 6}")
    assert vars(supervision_of(named, data, [sources.base], sources.chosen).distillation)["layers"] == {3: 6}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("distill", ["hidden", pytest.param("none", marks=pytest.mark.slow)])
def test_an_interrupted_training_ends_with_the_same_bits(distill: str, small: Path, tmp_path: Path) -> None:
    def interrupt(step: int, values: object) -> None:
        if step == 7:
            raise Interrupt

    given = ("train.max_steps=12", "train.save_steps=5", "train.logging_steps=1", f"distill={distill}")
    experiment = composed(small, *given, "model.num_layers=2")
    sources, data, ends = find_sources(experiment), data_of(experiment), {}
    for name, attempts in (("whole", (Recorder(),)), ("interrupted", (Recorder(interrupt), Recorder()))):
        task = PruningTask(experiment, data, [sources.base], sources.base, tmp_path / name, sources.chosen)
        for logger in attempts:
            try:
                student, pruner, stats = train_student(task, logger=logger)
            except Interrupt:
                continue
            ends[name] = student.state_dict()
            assert student.config.num_hidden_layers == 2
            assert {layer.name.split(".")[3] for layer in pruner.report()} == {"0", "1"}
            assert stats.steps == (12 if len(attempts) == 1 else 7)
    assert ends["whole"].keys() == ends["interrupted"].keys()
    assert all(torch.equal(value, ends["interrupted"][name]) for name, value in ends["whole"].items())


def test_a_student_with_fewer_layers_is_no_copy_of_its_teacher(small: Path) -> None:
    """So there is something to learn with pattern=dense, without labels and dropout."""
    given = ("pattern=dense", "distill.label_weight=0", "model.hidden_dropout=0", "model.attention_dropout=0")
    experiment = composed(small, *given, "model.num_layers=3")
    net = check(experiment, find_sources(experiment)).net
    assert net.config.num_hidden_layers == 3


# --- refusals -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("overrides", "words"), [
    (["model.num_layers=7"], "model.num_layers=7: "),
    (["model.layers=[0,6]"], "has no layer 6: it has 0 to 5"),
    (["model.num_layers=2", "model.layers=[0,1]"], "model.num_layers=2: model.layers=[0, 1] names them"),
    (["model.num_layers=2", "prune=false"], "prune=false makes none; add pattern=dense"),
    (["model.num_layers=2", "model.frozen=[bert.encoder.layer.4]"], "matches no parameter"),  # the student's number
    (["model.num_layers=2", "model.sparse=SMALL", "model.layers=[]"], "none of its 12 prunable weights has a zero"),
])  # fmt: skip
@pytest.mark.parametrize("dry", [[], ["dry_run=true"]], ids=["run", "dry"])
def test_what_cannot_be_is_refused_before_anything_is_trained(
    overrides: list[str], words: str, dry: list[str], small: Path, refused: Refused
) -> None:
    given = [text.replace("SMALL", str(small)) for text in overrides]
    assert words in refused("model=hub", f"model.path={small}", *FINISHED, *given, *dry)


# --- whole runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sweep(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with runs of all layers and of 2, dense and 4x1."""
    place = tmp_path_factory.mktemp("sweep")
    done = cli_in(place)("-m", "runner", "-m", "model=hub", f"model.path={small}", *FINISHED, "distill=logits_hidden",
                         "pattern=dense,4x1", "model.num_layers=null,2")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return place


def run_of(sweep: Path, pattern: str, layers: int) -> SimpleNamespace:
    for folder in (sweep / "outputs").glob(f"*-{pattern}-s0-*"):
        config = json.loads((folder / "model" / "config.json").read_text())
        if config["num_hidden_layers"] == layers:
            return SimpleNamespace(folder=folder, result=json.loads((folder / "result.json").read_text()))
    raise AssertionError((pattern, layers))


@pytest.mark.slow
def test_the_saved_folder_is_a_small_ordinary_model(sweep: Path, small: Path, cli: Cli) -> None:
    whole, fewer = run_of(sweep, "4x1", 6), run_of(sweep, "4x1", 2)
    tensors = load_file(fewer.folder / "model" / "model.safetensors")
    assert {name.split(".")[3] for name in tensors if name.startswith(LAYER)} == {"0", "1"}
    loaded = AutoModelForQuestionAnswering.from_pretrained(fewer.folder / "model")
    assert {name for name, _ in loaded.named_parameters()} == tensors.keys()
    weighed = fewer.result["footprint"]
    assert weighed["parameters"] == loaded.num_parameters() == sum(t.numel() for t in tensors.values())
    assert weighed["parameters_dense"] == whole.result["footprint"]["parameters"]
    assert weighed["macs_dense"] == whole.result["footprint"]["macs_dense"]
    assert weighed["macs_sparse"] < whole.result["footprint"]["macs_sparse"]
    assert weighed["bytes"] < whole.result["footprint"]["bytes"]
    assert fewer.result["student_layers"] == {"layers": [0, 5], "of": 6}
    assert fewer.result["verification"]["violations"] == 0
    assert whole.result["student_layers"] is None
    scored = cli("-m", "runner.evaluate", str(fewer.folder / "model"), "dataset=demo", "dataset.eval_examples=60")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["f1"] == pytest.approx(fewer.result["sparse"]["f1"])
    packed = cli("-m", "runner.export", str(fewer.folder), "--to", "packed")
    assert packed.returncode == 0, packed.stderr
    assert inspect(fewer.folder / "model").broken_claims == []


@pytest.mark.slow
def test_the_table_says_what_was_cut_and_the_control_has_all_layers(sweep: Path) -> None:
    done = cli_in(sweep)("-m", "results", "--format", "json")
    rows = {(row["pattern"], row["student_layers"]): row for row in json.loads(done.stdout)}
    cut = "2 of 6 layers (0, 5)"
    assert rows.keys() == {("dense", None), ("dense", cut), ("4x1", None), ("4x1", cut)}
    control = rows["dense", None]
    assert control["control"] is None
    for key, row in rows.items():
        if key != ("dense", None):
            assert row["control"]["runs"] == control["runs"]
            assert row["control"]["rivals"] == 1
            assert not any("no same-budget" in note for note in row["notes"])
        assert (f"it has {cut} of the dense model" in row["notes"]) == (key[1] == cut)
    assert rows["dense", cut]["parameters"] < control["parameters"] == control["parameters_dense"]
    text = cli_in(sweep)("-m", "results", "--wide").stdout
    assert "2 of 6" in text
    assert "Parameters left" in text


@pytest.mark.slow
def test_the_card_says_it(sweep: Path) -> None:
    fewer = run_of(sweep, "dense", 2)
    card = (fewer.folder / "model" / "README.md").read_text()
    weighed = fewer.result["footprint"]
    assert (f"It has 2 of 6 layers (0, 5) of the dense model, counted from 0: {weighed['parameters']:,} of "
            f"{weighed['parameters_dense']:,} parameters.") in card  # fmt: skip
    assert "it is not smaller than the dense model's" not in card
    pruned = (run_of(sweep, "4x1", 2).folder / "model" / "README.md").read_text()
    assert "only fewer layers make it smaller than the dense model's" in pruned
    assert "It has" not in (run_of(sweep, "4x1", 6).folder / "model" / "README.md").read_text()


@pytest.mark.slow
def test_a_run_starts_from_a_sparse_student_of_as_many_layers(sweep: Path, small: Path) -> None:
    start = run_of(sweep, "4x1", 2).folder
    given = ("pattern=4x1", "pattern.target_sparsity=0.9", f"model.sparse={start}", "model.num_layers=2")
    done = cli_in(sweep)("-m", "runner", "model=hub", f"model.path={small}", *FINISHED, "distill=logits_hidden", *given,
                         "output_dir=chain")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = (sweep / "chain").glob("*-4x1-*")
    before, after = (load_file(place / "model" / "model.safetensors") for place in (start, folder))
    assert all(bool(((after[name] == 0) | (before[name] != 0)).all()) for name in before if LAYER in name)
    assert json.loads((folder / "result.json").read_text())["verification"]["sparsity"] == pytest.approx(0.9, abs=0.01)
    other = cli_in(sweep)("-m", "runner", "model=hub", f"model.path={small}", *FINISHED, "model.sparse=" + str(start))
    assert other.returncode == 1
    assert "it is another network than the dense model" in other.stderr
    other = cli_in(sweep)("-m", "runner", "model=hub", f"model.path={small}", *FINISHED, "model.num_layers=3",
                          f"model.sparse={start}")  # fmt: skip
    assert "it is another network than the student" in other.stderr


@pytest.mark.slow
def test_the_dry_run_says_it_and_a_given_dense_model_is_cut(small: Path, cli: Cli, tmp_path: Path) -> None:
    given = ("-m", "runner", "model=hub", f"model.finetuned={small}", f"model.path={small}", *FINISHED, "pattern=dense",
             "model.layers=[0,1,2]", "distill=none")  # fmt: skip
    said = cli(*given, "dry_run=true")
    assert said.returncode == 0, said.stderr
    assert "student: 3 of 6 layers (0, 1, 2); 61,538 of 87,170 parameters\n" in said.stdout
    untrained = cli(*given, "train.max_steps=-1", "train.num_train_epochs=0")
    assert untrained.returncode == 0, untrained.stderr
    (folder,) = (tmp_path / "outputs").glob("*-dense-*")
    mine, theirs = (load_file(place / "model.safetensors") for place in (folder / "model", small))
    assert len(mine) < len(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())  # the top is gone, the rest the same
