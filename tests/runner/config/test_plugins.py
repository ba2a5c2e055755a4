"""`plugins=[my_module]`: the example of the guide, what is refused, identities, sweeps and records."""

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from runner import inspect
from runner.config import plugins
from runner.config.compose import compose_experiment
from runner.config.experiment import GROUPS, with_subclasses
from runner.records.identity import Contents, Identity, identify
from runner.records.runs import find as find_run
from runner.records.runs import made_by_of
from runner.system.errors import UserError
from runner.tracking import Tracking
from tests.conftest import FINISHED, ROOT, Cli
from tests.test_docs import GUIDE, blocks, commands

EXAMPLE = next(body for _, name, body in blocks(GUIDE) if name == "mine.py")
DEVELOP = "docs/develop.md"
COMMAND = next(line for line in commands(GUIDE) if "plugins=" in line)
QUICK = ("dataset.train_examples=64", "dataset.eval_examples=60", "train.max_steps=12", "finetune.max_steps=4",
         "schedule=short", "train.warmup_steps=2", "train.precision=null")  # fmt: skip


class Forgotten:
    """The base of classes that tests have finished with."""


@pytest.fixture
def importable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on Python's path; what is imported from it is forgotten afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_loaded", set())
    yield tmp_path
    for base in GROUPS.values():
        for cls in list(with_subclasses(base)):
            if cls.__module__.startswith("mine_"):  # or it would be an option in other tests, as long as it lives
                cls.__bases__ = (Forgotten,)
    for name in [name for name in sys.modules if name.startswith("mine_")]:
        del sys.modules[name]


def write(folder: Path, module: str, text: str) -> None:
    """A module; its criteria need no formula, as Magnitude has one."""
    header = "from pruning import Magnitude as Criterion\n\n"
    (folder / f"{module}.py").write_text(f"{header}{text}\n", encoding="utf-8")


def identity(*overrides: str) -> Identity:
    return identify(
        compose_experiment(["model=tiny", "dataset=demo", "pattern=4x1", *overrides])[0], Contents("m", "d")
    )


def test_the_example_has_six_lines() -> None:
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 6


def test_the_example_of_the_guide_runs(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE, encoding="utf-8")
    done = cli(*shlex.split(COMMAND)[1:], *QUICK)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("tiny-*")
    run = find_run(str(folder), Tracking())
    assert made_by_of(run).classes["criterion"] == "RowShare"
    assert made_by_of(run).plugins.keys() == {"mine"}
    assert run.result["verification"]["violations"] == 0
    again = cli(*shlex.split(COMMAND)[1:], *QUICK)
    assert "already finished" in again.stderr
    # A record is not obeyed: what it names is asked for.
    refused = cli("-m", "runner.reproduce", str(folder), "--no-log")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert refused.stderr.startswith("error: config.yaml names plugins=[mine], code that is not imported because")
    done = cli("-m", "runner.examples", str(folder), "plugins=[mine]", "--no-log")
    assert done.returncode == 0, done.stderr


def test_the_unit_of_several_matrices_in_the_documentation_is_a_class_and_a_yaml(cli: Cli, tmp_path: Path) -> None:
    files = {name: body for _, name, body in blocks(DEVELOP) if name}
    assert files.keys() == {"mine.py", "pattern/ffn32.yaml"}
    for name, body in files.items():
        (tmp_path / "more" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / (name if name.endswith(".py") else f"more/{name}")).write_text(body, encoding="utf-8")
    (command,) = [line for line in commands(DEVELOP) if "plugins=" in line]
    done = cli(*shlex.split(command)[1:], *QUICK)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "outputs").glob("tiny-demo-ffn32-*")
    result = json.loads((folder / "result.json").read_text())
    assert result["made_by"]["classes"]["pattern"] == "ChannelGroups"
    assert result["verification"]["violations"] == 0
    tensors = load_file(folder / "model" / "model.safetensors")
    for layer in range(4):
        name = f"bert.encoder.layer.{layer}."
        rows = (tensors[f"{name}intermediate.dense.weight"] == 0).all(1).view(-1, 32)
        columns = (tensors[f"{name}output.dense.weight"] == 0).all(0).view(-1, 32)
        biases = (tensors[f"{name}intermediate.dense.bias"] == 0).view(-1, 32)
        assert torch.equal(rows, columns)
        assert torch.equal(rows, biases)
        assert torch.equal(rows.any(1), rows.all(1))  # whole groups
        assert int(rows.all(1).sum()) == 8
    assert result["footprint"]["dead"] == "1,024 of 2,048 channels, 0 of 16 heads"
    exported = cli("-m", "runner.export", str(folder), "--to", "transformers")
    assert exported.returncode == 0, exported.stderr
    place = folder / "exports" / "transformers"
    assert json.loads((place / "config.json").read_text())["intermediate_size"] == 256
    # The YAML is an option with its own values.
    shown = cli("-m", "runner", "--config-dir", "more", "plugins=[mine]", "pattern=ffn32", "--cfg", "job")
    assert shown.returncode == 0, shown.stderr
    assert "size: 32" in shown.stdout


def test_a_class_is_an_option_with_its_fields_as_keys(importable: Path) -> None:
    text = "from dataclasses import dataclass\n\n\n@dataclass\nclass SumOfRow(Criterion):\n    power: float = 2.0"
    write(importable, "mine_one", text)
    experiment, origin = compose_experiment(["plugins=[mine_one]", "criterion=sum_of_row", "criterion.power=3"])
    assert type(experiment.criterion).__name__ == "SumOfRow"
    assert getattr(experiment.criterion, "power") == 3.0  # noqa: B009 (a class that pyright does not know)
    assert origin.choices["criterion"] == "sum_of_row"
    assert origin.changed == {"criterion.power": "3.0"}


def test_the_source_is_in_the_identity_of_runs_that_use_it(importable: Path) -> None:
    write(importable, "mine_two", "class MineTwo(Criterion):\n    pass")
    asked = ("plugins=[mine_two]", "criterion=mine_two")
    plain, before = identity(), identity(*asked)
    assert identity("plugins=[mine_two]") == plain  # named, not used
    assert before.run != plain.run
    assert (before.dense, before.control, before.budget) == (plain.dense, plain.control, plain.budget)
    write(importable, "mine_two", "class MineTwo(Criterion):\n    pass  # other code")
    after = identity(*asked)
    assert after.run != before.run
    assert after.control == before.control


def test_all_files_of_a_package_count(importable: Path) -> None:
    (importable / "mine_pack" / "deep").mkdir(parents=True)
    (importable / "mine_pack" / "__init__.py").touch()
    write(importable / "mine_pack", "criteria", "class MinePack(Criterion):\n    pass")
    (importable / "mine_pack" / "deep" / "helper.py").write_text("x = 1\n")
    asked = ("plugins=[mine_pack.criteria]", "criterion=mine_pack")
    before = identity(*asked)
    (importable / "mine_pack" / "deep" / "helper.py").write_text("x = 2\n")
    assert identity(*asked).run != before.run


@pytest.mark.parametrize(("name", "text", "override", "message"), [
    ("mine_a", "", "plugins=mine_a", "plugins=mine_a: name modules, in a list: plugins=[my_module]"),
    ("mine_b", "", "plugins=[../mine_b]", "name modules, in a list"),
    ("mine_c", "", "plugins=[mine_d]", "there is no module mine_d on Python's path; start from the folder of mine_d"),
    ("mine_e", "import nothing_of_this_name", "plugins=[mine_e]", "its import fails: ModuleNotFoundError: No module"),
    ("mine_f", "1 / 0", "plugins=[mine_f]", "its import fails: ZeroDivisionError: division by zero (*, line 3)"),
    ("mine_g", "class Magnitude(Criterion):\n    pass", "plugins=[mine_g]",
     "plugins=[mine_g]: the class Magnitude has the name of a criterion of pruning.criteria; give it another name"),
])  # fmt: skip
def test_a_module_that_cannot_be_taken(importable: Path, name: str, text: str, override: str, message: str) -> None:
    write(importable, name, text)
    with pytest.raises(UserError) as raised:
        compose_experiment([override])
    for part in message.split("*"):
        assert part in str(raised.value)


WHOLE = """
from dataclasses import dataclass
from pruning import Block, Criterion, Pattern, Schedule
from runner.data.classification import Classify
from runner.data.task import Dataset

class MineScore(Criterion):
    pass

class MineSum(Criterion):
    needs_gradient = True
    def saliency(self, layer): ...
    def observation(self, weight, gradient): ...

class MinePattern(Pattern):
    def misfit(self, shape): ...
    def unit_size(self, shape): ...
    def pool(self, values, reduction=None): ...
    def tile(self, matrix, pooled): ...

class MineSchedule(Schedule):
    def steps(self, length): ...

@dataclass
class MinePairs(Block):
    rows: int = 1
    cols: int = 2
    def __str__(self):
        return "pairs"

class MineTask(Dataset):
    architecture = "AutoModel"
    metrics = ("accuracy",)
    def named(self, splits): ...
    def groups(self, examples): ...
    def checked(self, part): ...
    def tokenized(self, batch, indices, tokenizer, labels): ...
    def heads(self, outputs, tokens): ...
    def logits_of(self, features, classes): ...

class MineClassify(Classify):
    pass
"""


@pytest.mark.parametrize(("overrides", "message"), [
    ("criterion=mine_score", "criterion: mine_whole.MineScore lacks the method saliency; see Criterion in pruning.c"),
    ("criterion=mine_sum", "criterion: mine_whole.MineSum lacks the method accumulate; see"),
    ("pattern=mine_pattern", "pattern: mine_whole.MinePattern lacks the method violations; see Pattern in pruning.p"),
    ("schedule=mine_schedule", "schedule: mine_whole.MineSchedule lacks the method sparsity; see Schedule in pruning."),
    ("pattern=mine_pairs", "pattern: mine_whole.MinePairs: parse gives no pattern for 'pairs', the name by which a "
     "saved model is verified; define the class method parse(cls, text, target_sparsity)"),
    ("dataset=mine_task dataset.metric=accuracy",
     "dataset: mine_whole.MineTask lacks the method score, the attribute label_names, the "
     "attribute pipeline_tag; see Dataset in runner.data.task"),
    ("dataset=mine_classify dataset.metric=accuracy", None),
])  # fmt: skip
def test_a_class_that_lacks_something_is_refused_before_anything_is_done(
    importable: Path, overrides: str, message: str | None
) -> None:
    write(importable, "mine_whole", WHOLE)
    asked = ["plugins=[mine_whole]", "pattern=4x1", "dataset.path=x", *overrides.split()]
    if message is None:
        compose_experiment(asked)
        return
    with pytest.raises(UserError, match=re.escape(message)):
        compose_experiment(asked)


def test_a_class_of_a_module_that_nobody_named(importable: Path) -> None:
    write(importable, "mine_h", "class MineH(Criterion):\n    pass")
    compose_experiment(["plugins=[mine_h]", "criterion=mine_h"])
    with pytest.raises(UserError, match=r"criterion: mine_h.MineH is not ours; add plugins=\[mine_h\]"):
        compose_experiment(["criterion=mine_h"])


def test_modules_in_yaml_are_not_imported(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "stranger" / "experiment").mkdir(parents=True)
    file = tmp_path / "stranger" / "experiment" / "theirs.yaml"
    file.write_text("# @package _global_\nplugins: [evil]\n", encoding="utf-8")
    (tmp_path / "evil.py").write_text("open('evil-was-here', 'w')\n", encoding="utf-8")
    done = cli("-m", "runner", "--config-dir", "stranger", "experiment=theirs", "model=tiny", "dataset=demo")
    assert done.returncode == 1
    refusal = "plugins=[evil] in a YAML file is not obeyed, as it is code; name it on the command line"
    assert done.stderr == f"error: {refusal}\n"
    assert not (tmp_path / "evil-was-here").exists()


@pytest.mark.slow
def test_jobs_of_a_sweep_and_a_reproduction_get_it(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE, encoding="utf-8")
    asked = ("model=hub", f"model.path={small_model}", *FINISHED, "plugins=[mine]", "criterion=row_share")
    done = cli("-m", "runner", "-m", *asked, "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1")
    assert done.returncode == 0, done.stderr
    first, second = sorted((tmp_path / "outputs").glob("small-model-*"))
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, second)]
    assert [result["made_by"]["classes"]["criterion"] for result in results] == ["RowShare", "RowShare"]
    assert results[0]["group"] == results[1]["group"]
    done = cli("-m", "runner.reproduce", str(first), "--no-log", "plugins=[mine]")
    assert done.returncode == 0, done.stderr + done.stdout
    assert "Reproduced bit for bit" in done.stdout
    (tmp_path / "mine.py").write_text(EXAMPLE + "\n# other code\n", encoding="utf-8")
    done = cli("-m", "runner.reproduce", str(first), "--no-log", "plugins=[mine]", "--output-dir", "other")
    assert "source of the plugin mine: " in done.stdout


def test_the_console_command_looks_in_the_working_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(EXAMPLE, encoding="utf-8")
    code = f"""import sys
sys.path[:] = [{str(ROOT)!r}, *(path for path in sys.path if path not in ("", {str(tmp_path)!r}))]
sys.argv = ["prune-distill", "plugins=[mine]", "criterion=row_share", "--cfg", "job"]
from runner.__main__ import main
sys.exit(main())"""
    done = cli("-c", code)
    assert done.returncode == 0, done.stderr
    assert "plugins:\n- mine\n" in done.stdout


PAIRS = '''"""A pattern, a task, and a sign that the module was imported."""

from dataclasses import dataclass
from pathlib import Path

from pruning import Block
from runner.data.demo import Demo

Path("imported").touch()


@dataclass
class Pairs(Block):
    """Two columns."""

    rows: int = 1
    cols: int = 2

    def __str__(self):
        return "pairs"

    @classmethod
    def parse(cls, text, target_sparsity):
        return cls(target_sparsity=target_sparsity or 0.5) if text == "pairs" else None


@dataclass
class Questions(Demo):
    """The demo's."""
'''


def test_a_pattern_of_a_folder_is_inspected_once_its_module_is_named(
    importable: Path, small_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(importable)
    (importable / "mine_pairs.py").write_text(PAIRS, encoding="utf-8")
    file = small_model / "model.safetensors"
    weights = load_file(file)
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name][:, :16] = 0
    save_file(weights, file)
    layer = {"name": name, "shape": [32, 32], "pattern": "pairs", "units": 512, "pruned_units": 256, "zeros": 512,
             "violations": 0, "skipped": None}  # fmt: skip
    claims = {"pattern": {"name": "pairs"}, "layers": [layer]}
    (small_model / "pruning.json").write_text(json.dumps(claims), encoding="utf-8")
    with pytest.raises(UserError, match=r"pruning.json: the pattern pairs is not ours: .* then add --plugins MODULE"):
        inspect.main([str(small_model)])
    assert not (importable / "imported").exists()
    capsys.readouterr()
    assert inspect.main([str(small_model), "--plugins", "mine_pairs"]) == 0
    assert "pruning.json says pairs: the file agrees" in capsys.readouterr().out
    weights[name][0, 0] = 1  # breaks a pair
    save_file(weights, file)
    assert inspect.main([str(small_model), "--plugins", "mine_pairs"]) == 1
    with pytest.raises(UserError, match="there is no module nowhere on Python's path"):
        inspect.main([str(small_model), "--plugins", "nowhere"])


@pytest.mark.slow
def test_a_model_is_scored_by_a_task_of_a_named_module(cli: Cli, tmp_path: Path, small_model: Path) -> None:
    (tmp_path / "mine_pairs.py").write_text(PAIRS, encoding="utf-8")
    given = ("-m", "runner.evaluate", str(small_model), "dataset=questions", "dataset.eval_examples=8")
    refused = cli(*given)
    assert refused.returncode == 1
    assert "questions" in refused.stderr
    assert not (tmp_path / "imported").exists()
    done = cli(*given, "plugins=[mine_pairs]")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["examples"] == 8


def test_an_export_of_a_run_reads_its_examples_once_the_module_is_named(
    importable: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from runner import export

    monkeypatch.chdir(importable)
    (importable / "mine_pairs.py").write_text(PAIRS, encoding="utf-8")
    assert export.parse(["RUN", "--to", "packed"]).plugins is None
    assert not (importable / "imported").exists()
    assert export.parse(["RUN", "--to", "packed", "--plugins", "mine_pairs"]).plugins == ["mine_pairs"]
    assert (importable / "imported").exists()
