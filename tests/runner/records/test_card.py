"""The model card: its statements about a run against the run's own files; and what cannot break it."""

import getpass
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jinja2
import pytest
from huggingface_hub import ModelCard
from jinja2.meta import find_undeclared_variables
from markdown_it import MarkdownIt
from safetensors.torch import load_file

from runner import data
from runner.config.compose import compose_experiment
from runner.config.experiment import with_subclasses
from runner.data.task import Dataset
from runner.models.verify import Verification
from runner.records import card, card_facts
from runner.records.card_facts import Counted, Facts, Source
from runner.records.identity import Contents, identify
from runner.records.result import Result
from tests.conftest import cli_in, save_small_model
from tests.loopback_hub import serve

pytestmark = pytest.mark.xdist_group("card")  # `place` is made once

SHORT = (
    "dataset=demo", "dataset.train_examples=48", "dataset.eval_examples=40", "dataset.max_eval_samples=30",
    "recipe=published",
    "schedule=short", "train.max_steps=6", "train.per_device_train_batch_size=8", "train.learning_rate=1e-3",
    "finetune.max_steps=2", "finetune.per_device_train_batch_size=8",
)  # fmt: skip
BASE = "lab/small-bert"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pruned run, whose base model came from a hub where its card names a licence, and a dense one."""
    place = tmp_path_factory.mktemp("cards")
    base = save_small_model(place / "hub" / "models" / BASE)
    (base / "README.md").write_text("---\nlicense: mit\n---\nA base model.\n")
    command = ("-m", "runner", "model=hub", f"model.path={BASE}", "pattern=2:4", *SHORT, "seed=3")
    where = f"tracking.uri=sqlite:///{place}/mlflow.db"
    with serve(place / "hub", place / "home") as env:
        for options in ((f"output_dir={place}/pruned",), (f"output_dir={place}/dense", "prune=false")):
            done = cli_in(place)(*command, where, *options, env=env)
            assert done.returncode == 0, done.stderr
    return place


def metadata(text: str) -> Any:
    """As huggingface_hub reads them."""
    return ModelCard(text).data


def folder_of(place: Path, kind: str) -> Path:
    (file,) = (place / kind).glob("*/result.json")
    return file.parent


def test_the_card_tells_the_runs_own_numbers(place: Path) -> None:
    folder = folder_of(place, "pruned")
    text = (folder / "model" / "README.md").read_text(encoding="utf-8")
    result = json.loads((folder / "result.json").read_text())

    # Counted once more, by shape and name alone.
    weights = load_file(folder / "model" / "model.safetensors")
    encoder = {n: w for n, w in weights.items() if ".encoder." in n and n.endswith("weight") and w.dim() == 2}
    zeros, elements = (
        sum(f(w) for w in encoder.values()) for f in (lambda w: int((w == 0).sum()), lambda w: w.numel())
    )
    linear = elements + weights["qa_outputs.weight"].numel()
    assert len(encoder) == 12
    for counted in (zeros / elements, zeros / linear, zeros / sum(w.numel() for w in weights.values())):
        assert f"{counted:.2%} of" in text
    assert "`2:4` in 12 layers" in text
    assert "0 units break the pattern" in text

    for metric, name in (("f1", "F1"), ("exact_match", "Exact match")):
        assert f"| {name} | {result['dense'][metric]:.4f} | {result['sparse'][metric]:.4f} |" in text
    drop = result["sparse"]["f1"] / result["dense"]["f1"] - 1
    assert f"Relative drop of F1, (sparse - dense) / dense: **{drop:+.2%}**" in text
    assert "one seed (3)" in text
    assert "Scored on 30 evaluation examples of `demo`: only a part, a subset of 30 examples." in text
    assert "- Training examples: 48\n" in text
    assert "- Optimizer steps: 6\n" in text
    assert f"- Of the model `{BASE}`: `mit`\n- Of the data `demo`: `apache-2.0`" in text
    assert "python -m runner model=hub model.path=lab/small-bert pattern=2:4 dataset=demo" in text


def test_the_metadata_are_what_the_hub_reads(place: Path) -> None:
    folder = folder_of(place, "pruned")
    data = metadata((folder / "model" / "README.md").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text())
    assert data.to_dict().keys() == {
        "license", "base_model", "metrics", "tags", "library_name", "pipeline_tag", "model-index"
    }  # fmt: skip
    assert (data.license, data.base_model, data.datasets) == ("mit", [BASE], None)  # the demo is on no hub
    assert (data.library_name, data.pipeline_tag) == ("transformers", "question-answering")
    assert {"prune-distill", "2:4"} <= set(data.tags)
    found = {each.metric_type: each.metric_value for each in data.eval_results}
    assert found == result["sparse"]
    assert {each.dataset_name for each in data.eval_results} == {"demo (a subset of 30 examples)"}


@pytest.mark.slow
def test_no_file_of_the_model_names_the_machine(place: Path) -> None:
    names = {str(place), str(Path.home()), "sqlite:", "mlflow.db"} | ({getpass.getuser()} - {"root", "runner"})
    files = [f for kind in ("pruned", "dense") for f in (folder_of(place, kind) / "model").iterdir()]
    texts = {f: f.read_text(encoding="utf-8") for f in files if f.suffix in (".md", ".json")}
    assert sum(f.name == "README.md" for f in texts) == 2
    assert [(f.name, name) for f, text in texts.items() for name in names if name in text] == []


def test_the_lines_that_recount_print_what_the_card_says(place: Path) -> None:
    folder = folder_of(place, "pruned") / "model"
    text = (folder / "README.md").read_text(encoding="utf-8")
    (lines,) = (lines for lines in re.findall("```python\n(.*?)\n```", text, re.DOTALL) if "safetensors" in lines)
    assert len(lines.splitlines()) == 3
    done = subprocess.run([sys.executable, "-c", lines], cwd=folder, capture_output=True, text=True, check=True)
    assert f"prints {done.stdout.strip()}, the fraction" in text
    assert float(done.stdout) == 0.5


def test_a_dense_model_has_a_card_without_a_pattern(place: Path) -> None:
    folder = folder_of(place, "dense")
    text = (folder / "model" / "README.md").read_text(encoding="utf-8")
    result = json.loads((folder / "result.json").read_text())
    data = metadata(text)
    assert data.tags == ["prune-distill"]
    assert {each.metric_type: each.metric_value for each in data.eval_results} == result["dense"]
    assert "pruning.json" not in text
    assert "zeros" not in text
    assert "The dense model: `lab/small-bert`, fine-tuned on `demo`" in text


# --- without a run ------------------------------------------------------------------------------------------


def facts(**changes: object) -> Facts:
    """Of a run that never was."""
    counted = Verification(0.7, 0.4, 0.8, 0)
    result = Result("m", "d", "4x1", 0, "f1", {"f1": 0.8}, {"f1": 0.75}, -0.0625, counted, "i", "g", "/outputs/m",
                    "run", {"seconds": {}, "steps": 9})  # fmt: skip
    layer = {"name": "a.weight", "pattern": "4x1", "skipped": None}
    named = {group: {"name": group.title()} for group in ("criterion", "allocation", "schedule", "regularizer")}
    known = Facts(
        result=result, architecture="AutoModelForQuestionAnswering", pipeline_tag="question-answering",
        dense=Source("lab/m", "lab/m", None, "mit"), fine_tunes=True, sparse=None, teachers=[],
        data=Source("d", "lab/d", None, "mit"), evaluated=Counted(100, 100, None), trained=Counted(400, 400, None),
        pruning={"pattern": {"name": "4x1"}, "layers": [layer], "updates": {"3": 0.4, "6": 0.8}, **named},
        pattern_meaning="Blocks.", distill={"name": "Logits", "weight": 1.0}, train={},
        made_by={"version.torch": "2.13"}, overrides=["pattern=4x1"],
    )  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]


def structure(text: str) -> list[tuple[str, str]]:
    """Blocks of a card's Markdown with what they are, and what is inside of their lines, but not the words."""
    body = ModelCard(text).text
    found = []
    for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(body):
        inside = " ".join(child.type for child in token.children or [] if child.type != "text")
        found.append((token.type, inside))
    return found


HOSTILE = (
    "x`y", "``", "`", "# h\n# h2", "a\n---\nlicense: evil\n---\n", "<script>alert(1)</script>", "[l](http://e)",
    "![i](e)", "|a|b|", "\\`", "```\nout\n```", "'\"", "{{ x }}", "*b*_i_", "a: b", "- x", "\u202eevil", "\x00\x1b[31m",
    "&lt;", " ", "!!python/object:os.system", "&a *a", "---", "~~~", "$x$", "path/to/this/folder`",
)  # fmt: skip


@pytest.mark.parametrize("bad", HOSTILE)
def test_what_comes_from_outside_does_not_break_out(bad: str) -> None:
    """Names of models, data, layers and commits, and the command line: the card is built as with plain ones."""

    def told(name: str) -> str:
        known = facts()
        pruning = {**(known.pruning or {})}
        pruning["layers"] = [{**pruning["layers"][0], "pattern": name}, {"name": name, "pattern": "", "skipped": "why"}]
        pruning["criterion"] = {"name": name, "reduce": name}
        return card.text(
            replace(
                known,
                result=replace(known.result, model=name, dataset=name, pattern=name),
                dense=Source(name, name, name, None),
                sparse=Source(name, None, None, None),
                teachers=[name],
                data=Source(name, name, name, None),
                pruning=pruning,
                made_by={"version.torch": name, "mlflow.source.git.commit": name, "hardware": name},
                overrides=[f"model.path={name}", name],
            )
        )

    text = told(bad)
    assert structure(text) == structure(told("plain"))
    data = metadata(text).to_dict()
    assert data.keys() == metadata(told("plain")).to_dict().keys()
    assert "license" not in data
    assert "\n" not in data["model-index"][0]["name"]
    body = text.split("How it was made")[0]
    assert not {c for c in body if not c.isprintable() and c != "\n"}


def test_the_structure_that_is_compared_sees_what_breaks() -> None:
    assert structure("---\na: b\n---\n`x`") != structure("---\na: b\n---\n`x`<b>")
    assert structure("---\na: b\n---\nx") != structure("---\na: b\n---\nx\n\n# y")


@pytest.mark.parametrize(("override", "kept"), [
    ("pattern=4x1", "pattern=4x1"),
    ("pattern=2:4", "pattern=2:4"),
    ("model.path=google-bert/bert-base-uncased", "model.path=google-bert/bert-base-uncased"),
    ("model.path=/home/somebody/models/mine", "model.path=path/to/mine"),
    ("model.path='/home/some body/mine/'", "model.path=path/to/mine"),
    ("dataset.path=~/data", "dataset.path=path/to/data"),
    ("dataset.path=../a/train.json", "dataset.path=path/to/train.json"),
    ("dataset.path=C:\\Users\\somebody\\train.json", "dataset.path=path/to/train.json"),
    ("+allocation.layers={*.query:{target:0.5}}", "+allocation.layers={*.query:{target:0.5}}"),
    ("output_dir=/home/somebody/out", None),
    ("cache_dir=cache", None),
    ("tracking.uri=http://somebody@server:5000", None),
    ("+tracking.experiment=secret", None),
    ("hydra.launcher.n_jobs=2", None),
    ("hydra/launcher=joblib", None),
    ("force=true", None),
])  # fmt: skip
def test_the_command_is_for_others(override: str, kept: str | None) -> None:
    assert card.repeatable([override]) == ([] if kept is None else [kept])


def test_a_folder_with_the_form_of_an_id_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "outputs" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert card.repeatable(["model.path=outputs/model"]) == ["model.path=path/to/model"]
    assert card.repeatable(["model.path=outputs/other"]) == ["model.path=outputs/other"]
    assert card_facts.source("outputs/model", "main") == Source("model", None, None, None)


@pytest.mark.parametrize(("written", "found"), [
    ("---\nlicense: apache-2.0\n---\n", "apache-2.0"),
    ("---\nlicense: other\n---\nA model", "other"),
    ("---\nlicense: [mit, apache-2.0]\n---\n", None),
    ("---\nlicense: 'mit` <b>'\n---\n", None),
    ("---\nlicense: {a\n---\n", None),
    ("---\nlicense: 3\n---\n", None),
    ("---\n- license\n---\n", None),
    ("license: mit", None),
    ("", None),
])  # fmt: skip
def test_a_licence_is_read_and_never_invented(written: str, found: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(written)
    assert card_facts.licence(str(tmp_path), None) == found


def test_where_no_card_can_be_read_the_licence_is_not_known(tmp_path: Path) -> None:
    assert card_facts.licence(str(tmp_path), None) is None  # a folder without one
    assert card_facts.licence("lab/not-in-any-cache", None) is None  # offline
    assert card_facts.licence("embedded:tiny", None) == "apache-2.0"
    text = card.text(facts(dense=Source("lab/m", "lab/m", None, None)))
    assert "Of the model `lab/m`: not known: see the model's own page" in text
    assert "license" not in metadata(text).to_dict()


def test_weights_of_two_models_have_a_licence_only_if_it_is_the_same() -> None:
    def named(other: str | None) -> str | None:
        return metadata(card.text(facts(sparse=Source("lab/s", "lab/s", None, other)))).license

    assert (named("mit"), named("apache-2.0"), named(None)) == ("mit", None, None)


@pytest.mark.parametrize(("overrides", "known"), [
    (["dataset=squad"], ("rajpurkar/squad", "cc-by-sa-4.0")),
    (["dataset=squad", "dataset.max_eval_samples=5"], ("rajpurkar/squad", "cc-by-sa-4.0")),
    (["dataset=demo"], (None, "apache-2.0")),
    (["dataset=squad", "dataset.path=lab/qa"], ("lab/qa", None)),
    (["dataset=squad", "dataset.path=."], (None, None)),
    (["dataset=squad", "dataset.path=lab/qa", "dataset.licence=cc-by-sa-4.0"], ("lab/qa", "cc-by-sa-4.0")),
])  # fmt: skip
def test_the_licence_of_the_data_belongs_to_these_data(overrides: list[str], known: tuple[str | None, ...]) -> None:
    experiment, origin = compose_experiment(["model=tiny", *overrides])
    found = card_facts.data_of(experiment.dataset, origin)
    assert (found.hub_id, found.licence) == known


def test_the_licence_does_not_change_the_identity() -> None:
    plain, other = (
        compose_experiment(["model=tiny", "dataset=squad", *more])[0]
        for more in ([], ["dataset.licence=mit"])
    )  # fmt: skip
    assert identify(plain, Contents("m", "d")) == identify(other, Contents("m", "d"))


@pytest.mark.parametrize(("counted", "said"), [
    (Counted(10570, 10570, None), None),
    (Counted(1000, None, None), None),
    (Counted(500, 10570, 500), "500 of its 10,570 examples"),
    (Counted(10560, 10570, None), "10,560 of its 10,570 examples"),
    (Counted(30, None, 30), "a subset of 30 examples"),
    (Counted(30, None, 50), None),
    (Counted(8760, 10570, None, 0.1), "a hold-out of 0.1 of train"),
    (Counted(500, 10570, 500, 0.1), "a hold-out of 0.1 of train, a subset of 500 examples"),
    (Counted(20, None, None, 0.1, has_split=False), "a hold-out of 0.1 of train"),
])  # fmt: skip
def test_a_part_of_the_examples_is_called_one(counted: Counted, said: str | None) -> None:
    assert card.part_of(counted) == said
    text = card.text(facts(evaluated=counted))
    assert ("all that there are" in text) == (said is None)
    assert ("to choose by, not to report" in text) == bool(counted.holdout and counted.has_split)
    assert ("set aside before training" in text) == (not counted.has_split)
    (found,) = metadata(text).eval_results
    assert found.dataset_name == ("d" if said is None else f"d ({said})")
    assert found.dataset_split == ("train" if counted.holdout else None)


def test_a_drop_that_is_not_defined_is_left_out() -> None:
    known = facts()
    text = card.text(replace(known, result=replace(known.result, relative_drop=None)))
    assert "Relative drop" not in text
    assert "Relative drop" in card.text(known)


def test_every_kind_of_dataset_has_the_hubs_name_of_its_task() -> None:
    data.import_all()
    kinds = [kind for kind in with_subclasses(Dataset) if hasattr(kind, "architecture")]
    assert len(kinds) >= 2
    assert [kind.__name__ for kind in kinds if not re.fullmatch("[a-z]+(-[a-z]+)*", kind.pipeline_tag)] == []


def test_the_card_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    experiment, origin = compose_experiment(["model=tiny"])
    (tmp_path / "README.md").write_text("as it was")
    monkeypatch.setattr(card, "collect", lambda *given: facts(pruning={}))  # whose text cannot be made
    with pytest.raises(KeyError):
        card.write(tmp_path, experiment, origin, None, None)  # type: ignore[arg-type]
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("README.md", "as it was")]


def test_the_template_uses_no_variable_that_is_not_given() -> None:
    """Jinja prints an unknown variable as nothing."""
    template = jinja2.Environment().parse(card.TEMPLATE.read_text(encoding="utf-8"))
    assert find_undeclared_variables(template) == {*card.variables(facts()), "card_data"}
    speed = jinja2.Environment().parse(card.SPEED.read_text(encoding="utf-8"))
    assert find_undeclared_variables(speed) == {"rows", "machine", "versions", "command"}


def test_numbers_are_exact_in_the_metadata() -> None:
    value = math.pi / 4
    known = facts()
    text = card.text(replace(known, result=replace(known.result, sparse={"f1": value})))
    assert [each.metric_value for each in metadata(text).eval_results] == [value]
