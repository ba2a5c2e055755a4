"""Keys, options, values and folders that cannot be: one sentence, before anything is read."""

import errno
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pruning import Block, NofM
from runner import evaluate
from runner.config.compose import compose_experiment, load
from runner.config.experiment import Experiment, Origin
from runner.config.keys import CHOICES, all_keys, nearest
from runner.config.refusals import advice
from runner.config.restore import classes, restore
from runner.config.sweep import Composer
from runner.records.identity import Contents, identify
from runner.stages.prepare import run_name
from runner.system.errors import UserError, disk_error
from runner.system.process import message
from runner.system.spelling import ALIASES, MOVED_KEYS
from tests.conftest import ROOT, Refused

CONF = ROOT / "conf"


def row(number: str, given: str, before: str, after: str) -> pytest.MarkDecorator:
    return pytest.mark.bad_input(number, given, before=before, after=after)


def refusal(*overrides: str) -> str:
    """The message for overrides that are refused when they are composed: one line, without Hydra's advice."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - UserError or PruningError, as `message` knows them
        compose_experiment(overrides)
    text = message(caught.value)
    assert text is not None, f"a defect, not a message: {caught.value!r}"
    check(text)
    return text


def check(text: str) -> None:
    """One line, without Hydra's advice to append a key, which would not be read."""
    assert "\n" not in text.strip()
    assert [
        words for words in ("To append", "full_key", "object_type", "Add a second", "hydra.cc") if words in text
    ] == []


# --- keys ---------------------------------------------------------------------------------------------------

IGNORED, APPEND = "ignored, and logged as a param", 'refused: "To append to your config use +..."'
KEYS = [
    (["+train.lr=1"], "did you mean train.learning_rate?", IGNORED),
    (["+bogus=1"], "there is no key bogus; python -m runner.reference prints all keys", IGNORED),
    (["++train.max_step=5"], "there is no key train.max_step; did you mean train.max_steps?", IGNORED),
    (["++bogus.a=1"], "there is no key bogus.a", IGNORED),
    (["+a.b.c=1"], "there is no key a.b.c", IGNORED),
    (["+modle=bert-mini"], "did you mean model?", IGNORED),
    (["+foo/bar=3"], "there is no key foo/bar", IGNORED),
    (["+pattern.foo=1"], "there is no key pattern.foo", IGNORED),
    (["+dataset.max_length=64"], "did you mean dataset.max_seq_length?", IGNORED),
    (["+recipe.learning_rat=1"], "did you mean recipe.learning_rate?", IGNORED),
    (["+finetune.lr=1"], "did you mean finetune.learning_rate?", IGNORED),
    (["+tracking.experimnt=x"], "did you mean tracking.experiment?", IGNORED),
    (["+recipe.finetune.lr=1"], "did you mean recipe.finetune.learning_rate?", IGNORED),
    (["+distill.layers={1:2}"], "Logits has no key layers, which is one of HiddenStates", IGNORED),
    (["+train={lr:5}"], "there is no key train.lr", APPEND),
    (["train.lr=1"], "did you mean train.learning_rate?", APPEND),
    (["lr=1"], "did you mean train.learning_rate?", APPEND),
    (["epochs=3"], "did you mean train.num_train_epochs?", APPEND),
    (["train.batch_size=8"], "did you mean train.per_device_train_batch_size?", APPEND),
    (["sparsity=0.8"], "did you mean pattern.target_sparsity?", APPEND),
    (["max-steps=8"], "did you mean train.max_steps?", APPEND),
    (["Seed=8"], "did you mean seed?", APPEND),
    (["modle=bert-mini"], "did you mean model?", APPEND),
    (["schedul=short"], "did you mean schedule?", APPEND),
    (["pattern=2:4", "pattern.rows=4"], "NofM has no key rows, which is one of Block; it has", APPEND),
    (["criterion=fisher", "criterion.momentum=0.9"], "DiagonalFisher has no key momentum", APPEND),
    (["+allocation.layers={*.query:{targett:0.3}}"], "did you mean allocation.layers.*.target?", "refused, no why"),
    (["hydra.bogus=1"], "Hydra has no key hydra.bogus", APPEND),
    (["train=5"], "train=5: it has keys of its own; give one of these a value", "refused, no why"),
    (["~train"], "a run needs the key train", "the recipe was ignored"),
    (["~model"], "~model: a run needs this group", "refused, no why"),
    (["+seed=3"], "the key has a value already; leave the + out", 'refused: "add a second +"'),
]  # fmt: skip


@pytest.mark.parametrize(("overrides", "words"), [
    pytest.param(overrides, words, id=" ".join(overrides), marks=row(
        "A6", " ".join(overrides), before, "refused, with the key, and the nearest one"
    )) for overrides, words, before in KEYS
])  # fmt: skip
def test_a_key_that_does_not_exist_is_refused(overrides: list[str], words: str) -> None:
    text = refusal(*overrides)
    assert words in text
    assert text.startswith(f"{overrides[-1]}: ")


def test_keys_that_exist_are_not_refused() -> None:
    compose_experiment(["+allocation.layers={*.query:{target:0.3}}", "++seed=3", "++train.learning_rate=1e-3"])
    compose_experiment(["distill=hidden", "+distill.layers={1:2}", "+hydra.job.name=x", "~benchmark"])
    assert compose_experiment(["recipe=published"])[1].choices["recipe"] == "published"


def test_all_keys_are_known_and_nearest_to_themselves() -> None:
    keys = all_keys()
    assert len(keys) > 100
    assert keys.keys() >= {
        *("seed", "train.learning_rate", "recipe.finetune.learning_rate", "pattern.rows", "pattern.n", "dataset.text"),
        *("allocation.layers", "allocation.layers.*.target", "tracking.uri", "distill.layers", "model.path"),
    }
    assert {key: nearest(key) for key in keys if nearest(key) != key and key.rpartition(".")[2] not in ALIASES} == {}
    assert {name for name in ALIASES.values() if nearest(name) is None} == set()
    assert keys.keys() >= set(MOVED_KEYS.values())
    assert all(nearest(key) is None for key in ("bogus", "a.b.c", "x", "train.zzz"))
    assert all(nearest(name) == name for name in CHOICES)


FILES = [
    ("experiment/mine", "# @package _global_\nbogus: 1\n", "experiment/mine.yaml: there is no key bogus"),
    ("experiment/mine", "# @package _global_\ntrain:\n  lr: 1\n",
     "experiment/mine.yaml: there is no key train.lr; did you mean train.learning_rate?"),
    ("experiment/mine", "# @package _global_\na:\n  b: {c: 1}\n", "experiment/mine.yaml: there is no key a;"),
    ("experiment/mine", "train:\n  learning_rate: 1\n", "begin the file with the line: # @package _global_"),
    ("experiment/mine", "# @package _global_\ntrain:\n  learning_rate: fast\n",
     "experiment/mine.yaml: train.learning_rate=fast: a number is needed"),
    ("experiment/mine", "# @package _global_\ntrain: 5\n", "mine.yaml: it has keys of its own; give one"),
    ("experiment/mine", "# @package _global_\n'train.learning_rate': 1\n", "train.learning_rate is one key here"),
    ("experiment/mine", "# @package _global_\ntrain:\n\tlr: 1\n", "mine.yaml, line 3: this is not YAML: found char"),
    ("experiment/mine", "# @package _global_\nseed: 1\nseed: 2\n", "mine.yaml, line 3: this is not YAML: found dupl"),
    ("experiment/mine", "# @package _global_\ndefaults: foo\n", "defaults must be a list"),
    ("experiment/mine", "# @package _global_\ndefaults:\n  - override /patern: 4x1\n",
     "experiment/mine.yaml: there is no group patern; did you mean pattern?"),
    ("experiment/mine", "# @package _global_\nseed: ${nope}\n", "seed: Interpolation key 'nope' not found"),
    ("experiment/mine", "# @package _global_\ndefaults:\n  - override /pattern: 2:4\n", 'write "2:4"'),
    ("experiment/mine", "# @package _global_\ndefaults:\n  - override /pattern: 2-4\n",
     "pattern=2-4: there is no pattern/2-4; did you mean pattern=2:4?"),
    ("experiment/mine", "# @package _global_\ndefaults:\n  - override /recipe: nope\n",
     "recipe=nope: there is no recipe/nope"),
    ("pattern/mine", "rows: 2\n", "pattern/mine.yaml: Pattern has no key rows, which is one of Block; begin the file"),
    ("pattern/mine", "defaults: [/schema/pattern/Block]\nrow: 2\n", "pattern/mine.yaml: there is no key pattern.row"),
    ("recipe/mine", "defaults: [/schema/recipe/Recipe]\nname: mine\nlr: 2\n",
     "recipe/mine.yaml: there is no key recipe.lr; did you mean recipe.learning_rate?"),
    ("schedule/mine", "defaults: [/schema/schedule/OneShot]\ndecay: exp\n", "OneShot has no key decay"),
]  # fmt: skip


@pytest.mark.parametrize(("file", "text", "words"), [
    pytest.param(file, text, words, id=f"{file}: {text}", marks=row(
        "A6", f"{file}.yaml: {' '.join(text.split())}", "several lines, or a traceback", "refused in one, with the file"
    )) for file, text, words in FILES
])  # fmt: skip
def test_a_file_with_a_key_or_option_that_does_not_exist(
    file: str, text: str, words: str, refused: Refused, tmp_path: Path
) -> None:
    place = tmp_path / "mine" / f"{file}.yaml"
    place.parent.mkdir(parents=True)
    place.write_text(text, encoding="utf-8")
    said = refused("--config-dir", str(tmp_path / "mine"), file.replace("/", "="))
    check(said)
    assert words in said


@pytest.mark.bad_input("A6", "a YAML file in another encoding", before="a traceback", after="refused in one line")
def test_a_file_that_is_not_utf_8(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine/experiment").mkdir(parents=True)
    (tmp_path / "mine/experiment/mine.yaml").write_bytes("# @package _global_\noutput_dir: Größe\n".encode("latin-1"))
    said = refused("--config-dir", str(tmp_path / "mine"), "experiment=mine")
    assert "is not UTF-8, after" in said
    assert "output_dir: Gr" in said


@pytest.mark.bad_input("C1", "seed=${x}, with and without -m", before="an error of Hydra's own key", after="refused")
@pytest.mark.parametrize("options", [[], ["-m"]])
def test_an_interpolation_is_resolved_in_the_configuration_only(options: list[str], refused: Refused) -> None:
    assert refused(*options, "seed=${nope}").startswith("error: seed: Interpolation key 'nope' not found")
    said = refused(*options, "seed=${dataset.max_seq_length}", "output_dir=")
    assert said.startswith("error: output_dir=: a folder is needed")


@pytest.mark.parametrize(("text", "arguments", "words"), [
    pytest.param("defaults: [config, _self_]\nbogus: 2\n", [], "own.yaml: there is no key bogus",
                 marks=row("A6", "--config-name own: bogus: 2", "several lines", "refused in one, with the file")),
    pytest.param("defaults: [config, _self_]\nhydra: {sweeper: {params: {train.lr: '1,2'}}}\n", ["-m"],
                 "train.lr=1: there is no key train.lr",
                 marks=row("A6", "hydra.sweeper.params: train.lr: 1,2", APPEND, "refused, with the nearest key")),
], ids=["key", "sweep"])  # fmt: skip
def test_a_configuration_of_the_users(
    text: str, arguments: list[str], words: str, refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/own.yaml").write_text(text)
    said = refused("--config-dir", str(tmp_path / "mine"), "--config-name", "own", *arguments)
    check(said)
    assert words in said


@pytest.mark.bad_input(
    "A6", "--config-name own, without the schema", before="Key 'dry_run' is not in struct", after="refused: the remedy"
)
def test_a_configuration_that_is_none_of_a_run() -> None:
    with pytest.raises(UserError, match="begin its defaults list with - config"):
        load(OmegaConf.create({"train": {"learning_rate": 1}}), {}, [])


@pytest.mark.parametrize(("overrides", "words"), [
    pytest.param(overrides, words, id=" ".join(overrides), marks=row(
        "A6", f"-m {' '.join(overrides)}", before, "refused"
    ))
    for overrides, words, before in (
        (["train.lr=1,2"], "train.lr=1: there is no key train.lr; did you mean train.learning_rate?", APPEND),
        (["+bogus=1,2"], "+bogus=1: there is no key bogus", IGNORED),
        (["recipe=nope,squad-bert-mini"], "recipe=nope: there is no recipe/nope", "the default"),
        (["pattern=2x1,4:2"], "did you mean 2:4?", "refused, with a list of files"),
        (["seed=0,-1"], "seed=-1 must be a whole number from 0", "a traceback in the job"),
    )
])  # fmt: skip
def test_a_sweep_is_refused_before_its_first_job(
    overrides: list[str], words: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.experiment.run", lambda *_: pytest.fail("a job was started"))
    said = refused("-m", *overrides)
    check(said)
    assert words in said


# --- options ------------------------------------------------------------------------------------------------

DEFAULT = "the default, without a word"
OPTIONS = [
    (["recipe=nope"], "recipe=nope: there is no recipe/nope. Available options: best, demo-tiny", DEFAULT),
    (["recipe=squad-bert-minni"], "did you mean recipe=squad-bert-mini?", DEFAULT),
    (["recipe=nope", "distill=none"], "there is no recipe/nope", DEFAULT),
    (["recipe="], "recipe=: a run takes one option of a group", DEFAULT),
    (["recipe=[a,b]"], "recipe=[a,b]: a run takes one option of a group", DEFAULT),
    (["pattern=[4x1,2x2]"], "pattern=[4x1,2x2]: a run takes one option", "the last of them, without a word"),
    (
        ["model=tiny", "+model=bert-base"],
        "+model=bert-base: the group model has an option already",
        "a mixture of both",
    ),
    (["+experiment=squad-bert-mini-4x1"], "leave the + out: experiment=squad-bert-mini-4x1", "advice for YAML"),
    (["++model=tiny"], "leave the + out: model=tiny", "refused, no why"),
    (["+schema/pattern=Block"], "a schema is named by the options of a group", "blocks of 1x1, without a word"),
    (["model=nope"], "model=nope: there is no model/nope. Available options: albert-base", "25 lines"),
    (["model=bert_mini"], "did you mean model=bert-mini?", "25 lines"),
    (["experiment=null"], "experiment=null: a group takes the name of an option, not null", "a traceback"),
    (["model=null"], "model=null: a group takes the name of an option, not null", "a traceback"),
    (["pattern=4"], "pattern=4: a group takes the name of an option, not int", "a traceback"),
    (["pattern@x=4x1"], "Did you mean to override pattern?", "advice to append"),
]


@pytest.mark.parametrize(("overrides", "words"), [
    pytest.param(overrides, words, id=" ".join(overrides), marks=row(
        "A6", " ".join(overrides), before, "refused, with the options"
    )) for overrides, words, before in OPTIONS
])  # fmt: skip
def test_an_option_that_does_not_exist_is_refused(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


def test_a_recipe_of_the_searchpath_is_found(tmp_path: Path) -> None:
    (tmp_path / "recipe").mkdir()
    (tmp_path / "recipe/mine.yaml").write_text("defaults: [/schema/recipe/Recipe]\nname: mine\nepochs: 3\n")
    experiment, _ = compose_experiment([f"hydra.searchpath=['file://{tmp_path}']", "recipe=mine"])
    assert (experiment.recipe.name, experiment.train.num_train_epochs) == ("mine", 3)


# --- patterns as they are typed -----------------------------------------------------------------------------

NO_FILE = "refused, with a list of files"


def identity(*overrides: str) -> tuple[str, dict[str, str], dict[str, str]]:
    """The run's identity, labels and changed keys."""
    experiment, origin = compose_experiment(overrides)
    return identify(experiment, Contents("model", "data")).run, origin.labels, origin.changed


@pytest.mark.parametrize(("typed", "text"), [
    pytest.param(typed, text, id=typed, marks=row("C1", f"pattern={typed}", NO_FILE, "as an equal YAML file"))
    for typed, text in (
        ("2x1", "defaults: [/schema/pattern/Block]\nrows: 2\ncols: 1\ntarget_sparsity: ${recipe.block_sparsity}\n"),
        ("3x5", "defaults: [/schema/pattern/Block]\nrows: 3\ncols: 5\ntarget_sparsity: ${recipe.block_sparsity}\n"),
        ("128x1", "defaults: [/schema/pattern/Block]\nrows: 128\ncols: 1\ntarget_sparsity: ${recipe.block_sparsity}\n"),
        ("3:8", "defaults: [/schema/pattern/NofM]\nn: 3\nm: 8\n"),
        ("16:32", "defaults: [/schema/pattern/NofM]\nn: 16\nm: 32\n"),
    )
])  # fmt: skip
def test_a_pattern_as_typed_is_that_of_an_equal_file(typed: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "pattern").mkdir()
    (tmp_path / "pattern/mine.yaml").write_text(text)
    searchpath = f"hydra.searchpath=['file://{tmp_path}']"
    assert identity(f"pattern={typed}", "dataset=mrpc") == identity(searchpath, "pattern=mine", "dataset=mrpc")
    (experiment, origin) = compose_experiment([f"pattern={typed}"])
    assert str(experiment.pattern) == origin.labels["pattern"] == origin.choices["pattern"] == typed


def test_patterns_of_files_are_those_of_their_names() -> None:
    sizes = [file.stem for file in CONF.glob("pattern/*.yaml") if re.fullmatch(r"\d+x\d+", file.stem)]
    assert len(sizes) >= 10
    for size in sizes:
        rows, cols = map(int, size.split("x"))
        assert yaml.safe_load((CONF / f"pattern/{size}.yaml").read_text()) == {
            "defaults": ["/schema/pattern/Block"], "rows": rows, "cols": cols,
            "target_sparsity": "${recipe.block_sparsity}",
        }  # fmt: skip
    assert compose_experiment(["pattern=4x1"])[0].pattern == Block(4, 1)
    assert "4x1.yaml" not in ConfigStore.instance().repo["pattern"]  # the file itself was read
    assert compose_experiment(["pattern=2:4"])[0].pattern == NofM(2, 4)


@pytest.mark.bad_input("C1", "pattern=3x5 where a folder has 3x5.yaml", before="the file", after="the file")
def test_a_file_comes_before_what_is_typed(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "mine/pattern").mkdir(parents=True)
    (tmp_path / "mine/pattern/7x5.yaml").write_text("defaults: [/schema/pattern/Block]\nrows: 7\ncols: 5\n"
                                                    "target_sparsity: 77\n")  # fmt: skip
    assert "pattern.target_sparsity=77" in refused("--config-dir", str(tmp_path / "mine"), "pattern=7x5")


@pytest.mark.bad_input("C1", "override /pattern: 3x5 in YAML", before=NO_FILE, after="accepted")
def test_a_pattern_is_typed_in_yaml_too(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment/mine.yaml").write_text(
        '# @package _global_\ndefaults:\n  - override /pattern: "3:7"\npattern:\n  mix: true\n  target_sparsity: 0.2\n'
    )
    experiment, _ = compose_experiment([f"hydra.searchpath=['file://{tmp_path}']", "experiment=mine"])
    assert experiment.pattern == NofM(3, 7, mix=True, target_sparsity=0.2)


@pytest.mark.parametrize(("typed", "words"), [
    pytest.param(typed, words, id=typed, marks=row("C1", f"pattern={typed}", NO_FILE, "refused, with what was meant"))
    for typed, words in (
        ("4:2", "pattern.n=4, pattern.m=2: N:M needs 0 < n < m; did you mean 2:4?"),
        ("8:1", "did you mean 1:8?"),
        ("5:5", "pattern.n=5, pattern.m=5: N:M needs 0 < n < m"),
        ("0:4", "N:M needs 0 < n < m"),
        ("0x0", "a block needs at least one of each"),
        ("4X1", "did you mean pattern=4x1? "),
        ("04x1", "did you mean pattern=4x1? "),
        ("2-4", "did you mean pattern=2:4? "),
        ("2/4", "did you mean pattern=2:4? "),
        ("2of4", "and any NxM and N:M"),
        ("2:4:8", "and any NxM and N:M"),
        ("0x1", "a block needs at least one of each; pattern=rows and pattern=columns prune whole ones"),
        ("4x0", "pattern=rows and pattern=columns"),
    )
])  # fmt: skip
def test_a_pattern_that_cannot_be_is_refused(typed: str, words: str) -> None:
    assert words in refusal(f"pattern={typed}")


# --- values -------------------------------------------------------------------------------------------------

GRAMMAR = 'refused: "mismatched input" or "LexerNoViableAltException"'
VALUES = [
    "/data/a=b", "/data/run (1)", "/data/a(1)", "/data/a#b", "/data/[a]", "/data/a[1]/b", "/data/a,b", "/data/Größe",
    "/data/ä b", "a{b}", "it's", 'say "so"', "it's (\"so\")", "a;b", "a&b", "!x", "=x", "a${b", "(a)", "~x^",
    "a`b`", "/Ü/x=1,y=(2)#[3]/€", "C:\\data\\a=b", "日本語", "a=b\\", "*(1)?", "\u200b",
]  # fmt: skip


@pytest.mark.parametrize("value", [
    pytest.param(v, marks=row("C1", f"dataset.path={v}", GRAMMAR, "the override as it must be typed")) for v in VALUES
])  # fmt: skip
def test_the_advice_can_be_typed_in_a_shell(value: str) -> None:
    override = f"dataset.path={value}"
    said = refusal(override)
    assert said.startswith(f"{override}: ")
    typed = in_shell(re.split("[:,] type ", said)[-1])
    experiment, origin = compose_experiment([typed])
    assert experiment.dataset.path == value
    assert restore(origin.yaml, classes(experiment), {}).experiment.dataset.path == value


def in_shell(advised: str) -> str:
    """The argument that a command gets when this is typed in a shell."""
    done = subprocess.run(["bash", "-c", f"printf %s {advised}"], capture_output=True, check=True)
    return done.stdout.decode()


@pytest.mark.bad_input("C1", "dataset.path=/a:b, $x, a*b?, C:\\data", before="read", after="read")
@pytest.mark.parametrize("value", ["/a:b", "$x", "a*b?", "C:\\data", "a b", "007", "a+b@c|d", "1.2.3", "-x"])
def test_what_needs_no_quotes(value: str) -> None:
    assert compose_experiment([f"dataset.path={value}"])[0].dataset.path == value


@settings(max_examples=300, deadline=None)
@given(st.text("abC19=()#[]{},:;!&*'äß中\"@+-_.~%$?|<>^`/é ", min_size=1, max_size=9).filter(lambda t: t == t.strip()))
def test_what_is_typed_is_read_or_there_is_an_advice(text: str) -> None:
    parser = OverridesParser.create()
    try:
        parsed = parser.parse_override(f"model.path={text}")
        if isinstance(parsed.value(), str) and not parsed.is_sweep_override():
            assert parsed.value() == text or text[0] in "'\""
    except HydraException:
        advised = advice(f"model.path={text}")
        assert advised is not None
        (typed,) = shlex.split(advised)
        value = parser.parse_override(typed).value()
        if isinstance(value, list):  # its elements are quoted
            assert text.startswith("[")
        else:
            assert value == text.replace("${", r"\${")


@pytest.mark.parametrize(("overrides", "words"), [
    pytest.param(overrides, words, id=" ".join(overrides), marks=row("C1", " ".join(overrides), before, "one sentence"))
    for overrides, words, before in (
        (["dataset.path=1e3"], "dataset.path=1e3: this reads as the number 1000.0; type 'dataset.path=\"1e3\"'",
         "a folder 1000.0"),
        (["model.path=2024_01"], "this reads as the number 202401", "a folder 202401"),
        (["dataset.labels=[a=b,c]"], "type 'dataset.labels=[\"a=b\",\"c\"]'", GRAMMAR),
        (["seed=1,2"], "seed=1,2: these are several values: add -m to run each of them", "three lines"),
        (["seed=choice(1,2)"], "seed=choice(1,2): these are several values: add -m", "requires --multirun"),
        (["pattern=4x1,2:4"], "pattern=4x1,2:4: these are several values: add -m to run each", "three lines"),
        (["seed", "=3"], "seed: an override is KEY=VALUE", GRAMMAR),
        (["train..lr=3"], "train..lr=3: an override is KEY=VALUE", GRAMMAR),
        (["bert-mini"], "bert-mini: an override is KEY=VALUE, such as model=bert-mini", GRAMMAR),
        (["seed=1e3"], "seed=1e3: a whole number is needed", "three lines"),
        (["seed=null"], "seed=null: a value is needed, not null", "three lines"),
        (["prune=perhaps"], "prune=perhaps: true or false is needed", "three lines"),
        (["train.learning_rate=fast"], "train.learning_rate=fast: a number is needed", "three lines"),
        (["model=glob([b,e]*)"], "model=glob([b,e]*): Hydra cannot read the value", GRAMMAR),
        (["pattern=glob(3[2]x1)"], "pattern=glob(3[2]x1): Hydra cannot read the value", GRAMMAR),
        (["dataset.path=glob(a=b)"], "dataset.path=glob(a=b): Hydra cannot read the value", GRAMMAR),
        (["seed=${x}"], "seed: Interpolation key 'x' not found", "two lines"),
        (["model=tiny", "dataset=demo", "dataset.path=mine.csv"],
         "dataset.path=mine.csv: this dataset is generated, and nothing is read; for data of your own choose dataset=",
         "a run on generated questions, logged as mine.csv"),
        (["model=tiny", "dataset=demo", "dataset.evaluation_splits=[test]"],
         "dataset.evaluation_splits=['test']: this dataset is generated", "the option had no effect"),
        (["seed=-1"], "seed=-1 must be a whole number from 0 to 4294967295", "a traceback after the data were read"),
        (["seed=-1", "criterion=obs"], "seed=-1 must be a whole number from 0 to", "the criterion's name for it"),
        (["criterion=obs", "criterion.seed=-1"], "criterion.seed=-1 must be a whole number from 0 to", "with samples"),
        (["dataset.evaluation_splits=dev"], "evaluation_splits=dev: a list is needed, in brackets", "ListConfig"),
        (["model.layers=3"], "model.layers=3: a list is needed, in brackets", "ListConfig"),
        (["train.max_steps=0"], "max_steps=0 is out of range in train or finetune: above 0, or -1", "as many as -1"),
        (["finetune.max_steps=-5"], "max_steps=-5 is out of range in train or finetune: above 0, or -1", "as -1"),
        (["seed=4294967296"], "seed=4294967296 must be a whole number from 0 to 4294967295", "a traceback"),
    )
])  # fmt: skip
def test_a_value_that_cannot_be_is_refused(overrides: list[str], words: str) -> None:
    assert words in refusal(*overrides)


# --- the command line ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [
    pytest.param(options, id=" ".join(options), marks=row("C1", " ".join(options), "a traceback", "one sentence"))
    for options in (["-m", "--cfg", "job"], ["-m", "seed=0,1", "--info"], ["--multirun", "--cfg", "all", "--resolve"])
])  # fmt: skip
def test_options_that_do_not_go_together(options: list[str], refused: Refused) -> None:
    said = refused(*options)
    check(said)
    assert "-m runs a sweep, and --cfg and --info show one run" in said


@pytest.mark.bad_input("C1", "-m pattern=glob(*x1)", before='refused: "ConfigLoader is not set"', after="a sweep")
def test_glob_in_a_sweep(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs: list[list[str]] = []

    class Recorded(Composer):
        def __call__(self, overrides: Sequence[str]) -> tuple[Experiment, Origin]:
            jobs.append(list(overrides))
            return super().__call__(overrides)

    def stop(*_: object) -> None:
        raise UserError("all jobs are composed")

    monkeypatch.setattr("runner.sweeps.callback.Composer", Recorded)
    monkeypatch.setattr("runner.sweeps.callback.disk.check_writable", stop)
    assert "all jobs are composed" in refused("-m", "pattern=glob(*x1)")
    names = {file.stem for file in CONF.glob("pattern/*x1.yaml")}
    assert names >= {"4x1", "8x1"}
    assert sorted(jobs) == sorted([f"pattern={name}"] for name in names)
    jobs.clear()
    assert "all jobs are composed" in refused("-m", "model=glob([bert*,electra*],exclude=*base)")
    assert sorted(jobs) == [["model=bert-large"], ["model=bert-mini"], ["model=electra-small"]]
    assert "model=glob(zz*): no option matches, so this sweep has no run" in refused("-m", "model=glob(zz*)")


@pytest.mark.parametrize(("overrides", "words"), [
    pytest.param(["+bogus=1"], "+bogus=1: there is no key bogus", marks=row(
        "A6", "runner.evaluate FOLDER +bogus=1", IGNORED, "refused"), id="+bogus=1"),
    pytest.param(["recipe=nope"], "there is no recipe/nope", marks=row(
        "A6", "runner.evaluate FOLDER recipe=nope", DEFAULT, "refused"), id="recipe=nope"),
    pytest.param(["dataset.path=a(1)"], "type 'dataset.path=\"a(1)\"'", marks=row(
        "C1", "runner.evaluate FOLDER dataset.path=a(1)", GRAMMAR, "how to type it"), id="a(1)"),
])  # fmt: skip
def test_evaluate_refuses_what_a_run_refuses(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=re.escape(words)):
        evaluate.main(["./nowhere", *overrides])


@pytest.mark.bad_input("C1", 'runner.evaluate "it\'s (1) #2"', before=GRAMMAR, after="the folder of this name")
def test_evaluate_takes_any_path() -> None:
    for path in ("./it's (1) #2", './"so"', "./a\\b ä"):
        with pytest.raises(UserError, match=re.escape(f"model={path}: there is no such folder")):
            evaluate.main([path])


# --- names and folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [
    pytest.param(key, marks=row("C1", f"{key}= with a name of 300 bytes", "a traceback", "one sentence"))
    for key in ("model.path", "model.finetuned", "model.sparse", "distill.teacher", "dataset.path", "output_dir",
                "cache_dir")
])  # fmt: skip
def test_a_name_that_is_too_long(key: str) -> None:
    for name in ("x" * 300, f"a/{'ä' * 130}/b"):
        size = max(len(part.encode()) for part in name.split("/"))
        text = refusal('dataset.path="x"', f'{key}="{name}"')
        assert text == f"{key}: a name in this path has {size} bytes, and 255 are the limit; shorten it"
    compose_experiment([f'{key}="{"x" * 255}/{"ä" * 127}"'])


@pytest.mark.bad_input("C1", "labels of 500 bytes", before='"File name too long" after training', after="shortened")
def test_the_name_of_a_run_fits_a_file_system(tmp_path: Path) -> None:
    short = {"model": "google/bert", "dataset": "squad", "pattern": "2:4"}
    assert run_name(short, 3) == "google_bert-squad-2of4-s3"
    for label in ("x" * 250, "ä" * 125, "中" * 80, "/".join(["part"] * 100)):
        for labels in ({**short, "model": label}, {**short, "dataset": label}, dict.fromkeys(short, label)):
            name = run_name(labels, 2**32 - 1)
            assert len(name.encode()) <= 200
            assert name.count("~") == sum(len(each) >= 80 for each in labels.values())
            assert name.endswith("-s4294967295")
            (tmp_path / f"{name}-01234567.tmp-4194304").mkdir()
            (tmp_path / f"{name}-01234567.tmp-4194304").rmdir()
    assert run_name({**short, "dataset": "x" * 150}, 0) == f"google_bert-{'x' * 150}-2of4-s0"  # as before


@pytest.mark.parametrize("key", ["output_dir", "cache_dir"])
@pytest.mark.parametrize("place", [
    pytest.param(place, marks=row("C1", f"output_dir, cache_dir: {what}", "dry_run: fine; the run: disk full", "named"))
    for place, what in (("file", "a file"), ("file/x", "below a file"), ("/proc/none", "/proc/none"), ("", "no name"))
])  # fmt: skip
def test_a_folder_that_cannot_be_written(key: str, place: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = str(tmp_path / place) if place else ""
    for more in ([], ["dry_run=true"], ["-m"])[: 3 if place == "file" else 1]:
        said = refused(*more, f"{key}={folder}")
        check(said)
        assert said.startswith(f"error: {key}={folder}: ")
        assert "free space" not in said


@row("C1", "output_dir=outputs/RUN", "a folder of runs in a run's folder", "the folder above is named")
def test_the_folder_of_a_run_is_no_folder_of_runs(refused: Refused, tmp_path: Path) -> None:
    run = tmp_path / "outputs" / "tiny-demo-4x1-s0-01234567"
    run.mkdir(parents=True)
    (run / "run.log").write_text("")  # alone it may be the log of a shell
    assert "tracking.uri" in refused(f"output_dir={run}", "tracking.uri=nosuch://x")
    (run / "config.yaml").write_text("")
    said = refused(f"output_dir={run}")
    check(said)
    assert f"error: output_dir={run} is the folder of a run" in said
    assert f"give output_dir={run.parent}:" in said


@pytest.mark.bad_input(
    "C1", "a folder without permission, a read-only disk", before='"free space"', after="the reason and its remedy"
)
def test_the_remedy_follows_the_reason() -> None:
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        assert "free space" in str(disk_error(OSError(number, os.strerror(number)), "outputs"))
    for number in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ENAMETOOLONG):
        text = str(disk_error(OSError(number, os.strerror(number)), "outputs"))
        assert f"cannot write to outputs: {os.strerror(number)}; choose a place that this user can write to" in text


@pytest.mark.bad_input("C1", "a deleted working folder", before="killed by a library", after="one sentence")
@pytest.mark.parametrize("module", ["runner", "runner.evaluate", "runner.inspect", "runner.cache"])
def test_a_deleted_working_folder(module: str, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    command = 'cd "$1" && rmdir "$1" && exec "$2" -m "$3"'
    done = subprocess.run(
        ["bash", "-c", command, "bash", str(gone), sys.executable, module],
        check=False, capture_output=True, text=True, timeout=60,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: the working folder was deleted; change to one that exists, then run again\n"
