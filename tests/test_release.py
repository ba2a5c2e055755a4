"""CHANGELOG.md and CITATION.cff belong to the version of pyproject.toml."""

import re
import tomllib

import yaml

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format requires
    expected = (PROJECT["name"], PROJECT["version"], PROJECT["license"], PROJECT["description"])
    assert (cited["title"], cited["version"], cited["license"], cited["abstract"]) == expected


def test_the_change_log_begins_with_this_version() -> None:
    chapters = re.findall(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert chapters[0][0] == PROJECT["version"]
    assert all(re.fullmatch(r"not released|\d{4}-\d\d-\d\d", date) for _, date in chapters)
