"""The engine's README: its example is run as it stands, and names what there is."""

import re
from pathlib import Path

import pruning
from pruning import Criterion, Pattern, Pruner, Regularizer, Schedule

TEXT = (Path(pruning.__file__).parent / "README.md").read_text(encoding="utf-8")


def test_the_example_prunes_as_it_says(capsys):
    code, without_training = re.findall(r"^```python\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
    found: dict = {}
    exec(compile(code, "README.md", "exec"), found)
    pruner = found["pruner"]
    assert isinstance(pruner, Pruner)
    zeros = sum(int((weight.detach() == 0).sum()) for weight in pruner.parameters.values())
    elements = sum(weight.numel() for weight in pruner.parameters.values())
    assert zeros == round(0.8 * elements / 4) * 4
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["0.weight", "2.weight"]
    assert all(line.endswith("zero, 0 broken 4x1 blocks") for line in lines)
    exec(compile(without_training, "README.md", "exec"), found)
    assert len(capsys.readouterr().out.splitlines()) == 2
    weights = pruning.matrix_weights(found["trained"]).values()
    assert sum(int((weight.detach() == 0).sum()) for weight in weights) == 0.5 * sum(
        weight.numel() for weight in weights
    )


def test_everything_that_can_be_chosen_is_named():
    def concrete(base: type) -> set[str]:
        subclasses = base.__subclasses__()
        names = {base.__name__} if not subclasses and base.__module__.startswith("pruning") else set()
        return names.union(*(concrete(cls) for cls in subclasses))

    found = set().union(*(concrete(base) for base in (Pattern, Criterion, Schedule, Regularizer)))
    assert len(found) >= 4 + 8 + 2 + 1
    assert {name for name in found if f"`{name}" not in TEXT} == set()


def test_nothing_here_knows_the_command_line():
    folder = Path(pruning.__file__).parent
    for file in (*folder.glob("*.py"), folder / "README.md"):
        text = file.read_text(encoding="utf-8")
        assert re.findall(r"YAML|MLflow|Hydra|\bhub\b|\bconf/|\brunner\b|command line", text) == [], file.name
        keys = r"(?<![\w.])(pattern|schedule|criterion|regularizer|distill|model|train|dataset)\.\w+=|\bdistill[.=]"
        assert re.findall(keys, text) == [], file.name
