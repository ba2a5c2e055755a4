"""docs/reference.md is what the dataclasses and YAML files say, all of it."""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from runner import reference
from runner.config.compose import compose, register
from runner.config.experiment import GROUPS
from runner.system import spelling
from runner.system.spelling import N_OF_M

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def made(*arguments: str) -> str:
    """What the command prints in a process of its own: other tests define patterns and schedules."""
    command = [sys.executable, "-m", "runner.reference", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def test_the_files_are_what_would_be_made_now() -> None:
    assert made() == TEXT, "run: python -m runner.reference > docs/reference.md"
    assert made("keys") == spelling.KEYS.read_text(), "run: python -m runner.reference keys > runner/config/keys.txt"


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
