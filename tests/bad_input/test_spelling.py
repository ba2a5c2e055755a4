"""Mistakes of spelling that are seen before anything is imported: as Hydra's path refuses them, and nothing else."""

from importlib import import_module
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser

from runner.config.compose import compose_experiment, register
from runner.config.keys import CHOICES
from runner.system import spelling
from runner.system.errors import UserError


@pytest.mark.parametrize("given", [
    "pattern=nonsense", "pattern=4X1", "model=brt-base", "dataset=sqad", "distill=logit", "experiment=squad-bert",
    "seeed=3", "train.lr=1", "modle=tiny", "train.learning_rte=1e-3", "dataset.max_seq_lenght=64",
    "train.lr_scheduler_type=linaer", "dataset=data.csv", "finetune.precision=int8", "target_sparsity=0.8",
])  # fmt: skip
def test_the_message_is_that_of_composing(given: str) -> None:
    with pytest.raises(UserError) as slow:
        compose_experiment([given])
    assert spelling.mistake([given]) == str(slow.value)


@pytest.mark.parametrize(("given", "remedy"), [
    ("model=org/name", "a model of the hub or of a folder is model=hub model.path=org/name"),
    ("model=./mine", "model=hub model.path=./mine"),
    ("dataset=reviews.csv", "your own data are dataset=classify (or tag, or span) dataset.path=reviews.csv"),
    ("dataset=data/reviews", "dataset.path=data/reviews"),
])  # fmt: skip
def test_a_path_or_an_id_in_place_of_an_option(given: str, remedy: str) -> None:
    with pytest.raises(UserError) as refused:
        compose_experiment([given])
    assert remedy in str(refused.value)


def test_an_option_with_the_ending_of_its_file() -> None:
    assert "; did you mean model=tiny?" in str(spelling.mistake(["model=tiny.yaml"]))


@pytest.mark.parametrize("given", [
    "pattern=64x1", "pattern=2:32", "seed=1", "train.learning_rate=1e-3", "model=a,b",
    "allocation.layers.x.pattern=4x1",
    "+recipe.new=1", "~benchmark", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "pattern=24", "model=null",
    "recipe=published", "zzz=1", "schedule.warmup_steps=3", "model.path=bert-base-uncased", "model.path='./no where'",
    "dataset=", "model.path=", "train={learning_rate:1}", "pattern=${x}", "tracking.uri=sqlite:///a.db", "a=b=c",
])  # fmt: skip
def test_what_is_right_or_unclear_is_left_to_hydra(given: str) -> None:
    assert spelling.mistake([given]) is None


@pytest.mark.parametrize(("arguments", "message"), [
    (["--dry-run"], "--dry-run: a run is configured by KEY=VALUE without dashes; did you mean dry_run=true?"),
    (["--model", "tiny"], "--model: a run is configured by KEY=VALUE without dashes; did you mean model=tiny?"),
    (["--lr=1e-3"], "--lr: a run is configured by KEY=VALUE without dashes; did you mean train.learning_rate=1e-3?"),
    (["-m", "--forc", "seed=1"], "--forc: a run is configured by KEY=VALUE without dashes; did you mean force=true?"),
    (["--mulitrun", "seed=0,1"], "--mulitrun: there is no such flag; did you mean --multirun?"),
    (["--confg-dir", "mine"], "--confg-dir: there is no such flag; did you mean --config-dir?"),
    (["--zzz"], "--zzz: there is no such flag; a run is configured by KEY=VALUE, see --help"),
])  # fmt: skip
def test_a_flag_that_does_not_exist(arguments: list[str], message: str) -> None:
    assert spelling.mistake(["model=tiny", *arguments]) == message


def test_no_argument_is_no_mistake() -> None:
    assert spelling.mistake([]) is None


def test_the_flags_are_those_of_hydra() -> None:
    known = {flag for action in get_args_parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert known == {*spelling.FLAGS}
    for flag in (*spelling.FLAGS, "--mult", "--info=all"):
        after = "install=bash" if flag == "--shell-completion" else "model=tiny"
        assert spelling.mistake([flag, after]) is None, flag


def test_each_value_of_a_sweep() -> None:
    assert str(spelling.mistake(["-m", "train.precision=bf16,fp61"])) == (
        "train.precision=fp61: choose from float32, tf32, bf16, fp16; did you mean train.precision=fp16?"
    )
    assert spelling.mistake(["-m", "train.precision=bf16,null", "train.lr_scheduler_type=cosine"]) is None
    assert str(spelling.mistake(["-m", "pattern=4x1,nonsens"])).startswith("pattern=nonsens: ")
    assert str(spelling.mistake(["--multirun", "sed=0,1"])) == "sed=0: there is no key sed; did you mean seed?"
    assert spelling.mistake(["pattern.learning_rate=1"]) is None  # a field elsewhere: composing has more to say
    assert spelling.mistake(["-m", "pattern=4x1,2:4", "pattern=glob(*x1)", "model.path=./a,./b"]) is None


@pytest.mark.parametrize("own", ["--config-dir=mine", "-cd", "--config-name", "hydra.searchpath=[x]"])
def test_options_of_ones_own_are_left_to_hydra(own: str) -> None:
    assert spelling.mistake(["dataset=reviews", own]) is None


@pytest.mark.parametrize("key", ["model.path", "model.finetuned", "distill.teacher", "dataset.path"])
def test_a_path_names_the_nearest(tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reviews.csv").write_text("text,label\n")
    kind = "file or folder" if key == "dataset.path" else "folder"
    message = f"{key}=./reveiws.csv: there is no such {kind}; did you mean reviews.csv?"
    assert spelling.mistake([f"{key}=./reveiws.csv"]) == message
    assert spelling.mistake([f"{key}=./reviews.csv"]) is None
    assert spelling.mistake([f"{key}={tmp_path}/x"]) is None  # like nothing there: found when it is read
    assert spelling.mistake([f"{key}={tmp_path}/x/y"]) is None


@pytest.mark.parametrize("key", ["model.path", "model.finetuned", "model.sparse", "distill.teacher", "dataset.path"])
def test_a_place_that_does_not_exist(tmp_path: Path, key: str) -> None:
    place = tmp_path / "far" / "off"
    message = f"{key}={place}: there is no such {'file or folder' if key == 'dataset.path' else 'folder'}"
    assert spelling.missing_place(["model=tiny", f"{key}={place}"]) == message
    for other in ("-m", "--cfg", "--config-dir=mine"):  # other jobs may run, nothing does, or it means something else
        assert spelling.missing_place([other, f"{key}={place}"]) is None
    for value in (tmp_path, "owner/name", "bert-base-uncased", ""):
        assert spelling.missing_place([f"{key}={value}"]) is None
    assert spelling.missing_place([f"output_dir={place}", "seed=1"]) is None


def test_a_run_is_named_by_the_folder_that_it_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs" / "tiny-demo-4x1-s0-0161f18d").mkdir(parents=True)
    meant = "; did you mean outputs/tiny-demo-4x1-s0-0161f18d?"
    for given in ("tiny-demo-4x1-s0-0161f18d", "tiny-demo-4x1-s1-0161f18d", "outputs/tiny-demo-4x1-s0-0161f18"):
        assert spelling.did_you_mean(Path(given)) == meant
    for given in ("nowhere", "elsewhere/tiny-demo-4x1-s0-0161f18d"):
        assert spelling.did_you_mean(Path(given)) == ""


@pytest.mark.parametrize(("command", "given"), [
    ("evaluate", ["outputs/tiny-s1"]), ("inspect", ["outputs/tiny-s1"]), ("benchmark", ["outputs/tiny-s1"]),
    ("export", ["outputs/tiny-s1", "--to", "packed"]), ("examples", ["tiny-s1"]), ("reproduce", ["tiny-s1"]),
    ("share", ["tiny-s1", "--repo-id", "a/b"]), ("upload", ["outputs/tiny-s1"]), ("runs", ["--output-dir", "output"]),
    ("cache", ["list", "--cache-dir", "cach"]),
])  # fmt: skip
def test_commands_name_the_folder_that_was_meant(
    tmp_path: Path, command: str, given: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("outputs/tiny-s0", "cache"):
        (tmp_path / folder).mkdir(parents=True)
    meant = {"runs": "outputs", "cache": "cache"}.get(command, "outputs/tiny-s0")
    with pytest.raises(UserError, match=rf"; did you mean {meant}\?$"):
        import_module(f"runner.{command}").main(given)


def test_every_group_has_options() -> None:
    register()
    for group in CHOICES:
        assert spelling.options(group), group
