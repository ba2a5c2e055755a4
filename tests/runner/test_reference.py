"""docs/reference.md is what the dataclasses and YAML files say, all of it."""

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import DictConfig, OmegaConf

from runner import reference
from runner.config.compose import compose, register
from runner.config.experiment import GROUPS
from runner.system import spelling
from runner.system.errors import UserError
from runner.system.spelling import N_OF_M

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
SCHEMA = ROOT / "docs" / "schema.json"


def test_the_files_are_what_would_be_made_now() -> None:
    """In a process of its own: other tests define patterns and schedules."""
    code = (
        "import json; from runner.reference import LISTS; print(json.dumps({n: make() for n, make in LISTS.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    made = json.loads(done.stdout)
    assert made[""] == TEXT, "run: python -m runner.reference > docs/reference.md"
    assert made["keys"] == spelling.KEYS.read_text(), "run: python -m runner.reference keys > runner/config/keys.txt"
    assert made["schema"] == SCHEMA.read_text("utf-8"), "run: python -m runner.reference schema > docs/schema.json"


def test_every_key_of_a_run_is_in_it() -> None:
    register()
    config = OmegaConf.to_container(compose([]))
    assert isinstance(config, dict)
    found = 0
    for group, values in config.items():
        names = [f"{group}.{key}" for key in values] if group in GROUPS else [group]
        if group in ("train", "finetune", "tracking"):
            names = list(values)
        for name in names:
            assert f"| `{name}` |" in TEXT, name
            found += 1
    assert found > 90


def test_every_option_of_every_group_is_in_it() -> None:
    count = 0
    for group in GROUPS:
        names = {file.stem for file in (ROOT / "conf" / group).glob("*.yaml")}
        if group == "pattern":
            names |= {f"{n}:{m}" for n, m in N_OF_M}
        assert {option.name for option in reference.options(group)} == names
        section = TEXT.split(f"\n## `{group}`\n")[1].split("\n## ")[0]
        for name in names:
            listed = re.search(rf"`({group}=)?{re.escape(name)}`", section)
            assert listed or len(names) == 1 or group == "recipe", (group, name)
            count += 1
    assert count >= 50


def test_a_field_without_a_text_is_an_error() -> None:
    @dataclass
    class Silent:
        told: int = 0
        """It is."""
        silent: str | None = None

    with pytest.raises(ValueError, match="Silent: nothing stands under silent"):
        reference.keys(Silent)
    (key,) = reference.keys(Silent, without={"silent"})
    assert (key.name, key.default, key.meaning) == ("told", "`0`", "It is.")


def test_the_argument_names_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    reference.main(["keys"])
    assert "train.learning_rate\n" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"schemas: there is no such list; python -m runner.reference \[keys \| schema\]"
    ):
        reference.main(["schemas"])


@cache
def validator() -> Any:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def as_json(config: DictConfig, resolve: bool) -> Any:
    """The values as an editor reads them from the YAML that `--cfg job` prints."""
    return json.loads(json.dumps(yaml.safe_load(OmegaConf.to_yaml(config, resolve=resolve))))


@cache
def _usual() -> str:
    register()
    return json.dumps(as_json(compose([]), resolve=True))


def usual() -> Any:
    """The configuration that is composed without any override."""
    return json.loads(_usual())


def complaints(values: Any) -> list[str]:
    """Where the schema refuses these values."""
    return [error.json_path for error in validator().iter_errors(values)]


OPTIONS = {group: [option.name for option in reference.options(group)] for group in GROUPS if group != "recipe"}
COMPOSED = [
    [f"{group}={names[i % len(names)]}" for group, names in OPTIONS.items()]
    for i in range(max(map(len, OPTIONS.values())))
]
"""Command lines that have every option of every group."""


@pytest.mark.parametrize("overrides", COMPOSED, ids=" ".join)
def test_the_schema_accepts_the_composed_configuration_of_every_option(overrides: list[str]) -> None:
    validator()
    register()
    config = compose(overrides)
    assert complaints(as_json(config, resolve=False)) == []
    if not OmegaConf.missing_keys(config):
        assert complaints(as_json(config, resolve=True)) == []


def test_the_schema_accepts_files_of_the_group_experiment() -> None:
    files = [file for name in ("experiment", "debug", "hparams_search") for file in (ROOT / "conf" / name).iterdir()]
    assert len(files) >= 16
    for file in files:
        assert complaints(yaml.safe_load(file.read_text(encoding="utf-8"))) == [], file


@pytest.mark.parametrize(("key", "value", "place"), [
    ("trian", {}, "$"),
    ("train.learning_rat", 1e-4, "$.train"),
    ("dataset.txet", "review", "$.dataset"),
    ("criterion.rounds", [0.5], "$.criterion"),  # a key of another criterion
    ("recipe.finetune.epoch", 2, "$.recipe"),
    ("allocation.layers", {"*.query": {"targte": 0.5}}, "$.allocation"),
    ("seed", "seven", "$.seed"),
    ("seed", 1.5, "$.seed"),
    ("seed", None, "$.seed"),
    ("train.patience", "three", "$.train"),
    ("train.precision", "float64", "$.train"),
    ("model.excluded", "pooler", "$.model"),
    ("pattern.rows", [4], "$.pattern"),
    ("prune", "yes please", "$.prune"),
])  # fmt: skip
def test_the_schema_refuses_a_misspelled_key_and_a_wrong_type(key: str, value: Any, place: str) -> None:
    config = usual()
    assert complaints(config) == []
    *groups, name = key.split(".")
    node = config
    for group in groups:
        node = node[group]
    node[name] = value
    assert complaints(config) == [place]


def test_the_schema_accepts_what_people_write() -> None:
    values = {
        "allocation": {"layers": {"*.query": {"target": 0.5}, "*.layer.0.*": {"excluded": True}}},
        "distill": {"layers": {"0": 1}},
        "train": {"precision": "bf16", "evaluate": "epochs", "patience": 3},
        "schedule": {"start": 0},
        "output_dir": "${oc.env:SCRATCH}/outputs",
    }
    assert complaints(values) == []


def test_the_schema_describes_every_key() -> None:
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    nodes = [schema, *(node for node in schema["definitions"].values() if "properties" in node)]
    count = 0
    for node in nodes:
        for name, key in node["properties"].items():
            assert key["description"], name
            count += 1
    assert count > 200
    training = schema["definitions"]["Training"]["properties"]
    assert training["precision"]["anyOf"][0] == {"enum": ["float32", "tf32", "bf16", "fp16"]}
    assert training["lr_scheduler_type"]["default"] == "linear"
    assert "pattern=" in schema["definitions"]["Block"]["description"]
