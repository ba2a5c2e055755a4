"""docs/guide.md: its files are made, its commands are run where they need no network, else composed, all of them."""

import re
import shlex
from pathlib import Path

import pytest

from runner.config.compose import compose_experiment
from runner.sweeps.callback import expand
from tests.conftest import Cli

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
COMMANDS = [line for kind, _, body in BLOCKS if kind == "sh" for line in body.splitlines()]
FILES = {name: body for _, name, body in BLOCKS if name}
EMBEDDED = [line for line in COMMANDS if "model=tiny" in line or line.split()[-1] in ("results", "--help")]


def test_blocks_are_commands_or_files_with_a_name() -> None:
    assert {kind for kind, _, _ in BLOCKS} == {"sh", "yaml", "csv"}
    assert all(bool(name) == (kind != "sh") for kind, name, _ in BLOCKS)
    assert (len(COMMANDS), len(FILES), len(EMBEDDED)) == (23, 3, 5)
    assert all(line.startswith("python -m ") for line in COMMANDS)


def overrides(line: str) -> list[list[str]]:
    """Of each job of a command."""
    words = shlex.split(line)[2:]
    if words[0] == "runner.evaluate":
        return [["model=hub", "model.path=x", *words[2:]]]
    arguments = [word for word in words[1:] if word not in ("--cfg", "job", "--resolve")]
    if arguments[:1] == ["--config-dir"]:
        arguments = arguments[2:]
    return expand(arguments[1:]) if arguments[:1] == ["-m"] else [arguments]


@pytest.mark.parametrize("line", [line for line in COMMANDS if "mine" not in line and line not in EMBEDDED])
def test_commands_that_need_a_hub_compose(line: str) -> None:
    for job in overrides(line):
        compose_experiment(job)


def test_commands_that_need_no_network_are_run(cli: Cli) -> None:
    for line in EMBEDDED:
        done = cli(*shlex.split(line)[1:])
        assert done.returncode == 0, (line, done.stderr)
        if line == "python -m results":
            assert "dense" in done.stdout
            assert "2:4" in done.stdout


def test_files_are_found_by_their_commands(cli: Cli, tmp_path: Path) -> None:
    for name, body in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")
    (line,) = [line for line in COMMANDS if "--config-dir" in line]
    done = cli(*shlex.split(line)[1:], "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "path: reviews.csv" in done.stdout
    done = cli("-m", "runner", "--config-dir", "mine", "model=mine", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "finetuned: csarron/bert-base-uncased-squad-v1" in done.stdout


def test_every_chapter_is_there() -> None:
    linked = re.findall(r"^\* \[(.*)\]\(#(.*)\)$", TEXT, re.MULTILINE)
    chapters = re.findall(r"^## (.*)$", TEXT, re.MULTILINE)
    assert [title for title, _ in linked] == chapters
    assert [anchor for _, anchor in linked] == [
        re.sub(r"[^\w ]", "", title.lower()).replace(" ", "-") for title in chapters
    ]
    assert len(chapters) == 8


def test_links_lead_to_files() -> None:
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)#]\S*)\)", TEXT)]
    assert len(targets) == 3
    assert all((ROOT / "docs" / target).is_file() for target in targets)
