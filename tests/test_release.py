"""CHANGELOG.md and CITATION.cff belong to the version of pyproject.toml, docs/Dockerfile to its files."""

import re
import tomllib

import yaml

from tests.conftest import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOLS = SETTINGS["project"], SETTINGS["tool"]
DOCKERFILE = (ROOT / "docs" / "Dockerfile").read_text(encoding="utf-8")


def test_the_citation_is_of_this_version() -> None:
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()  # what the format requires
    expected = (PROJECT["name"], PROJECT["version"], PROJECT["license"], PROJECT["description"])
    assert (cited["title"], cited["version"], cited["license"], cited["abstract"]) == expected


def test_the_set_up_has_what_builds_the_site() -> None:
    """`make setup` installs the extra dev, with every version pinned."""
    extras = PROJECT["optional-dependencies"]
    assert "docs" in re.findall(r"\w+", extras["dev"][0].partition("[")[2])
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines()}
    assert {re.split(r"\W{2}", need)[0] for need in extras["docs"]} <= pinned


def test_the_change_log_begins_with_this_version() -> None:
    chapters = re.findall(r"^## (\S+) \((.*)\)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert chapters[0][0] == PROJECT["version"]
    assert all(re.fullmatch(r"not released|\d{4}-\d\d-\d\d", date) for _, date in chapters)


def test_the_image_has_what_the_set_up_needs() -> None:
    """Every source of a COPY exists, and all that pyproject.toml and the Makefile name is copied."""
    copies = [line.split()[1:] for line in DOCKERFILE.splitlines() if line.startswith("COPY ")]
    copied = {source for *sources, _ in copies for source in sources}
    assert all((ROOT / source).exists() for source in copied)
    assert all(target in ("./", *sources) for *sources, target in copies)
    packages = {pattern.rstrip("*") for pattern in TOOLS["setuptools"]["packages"]["find"]["include"]}
    assert copied == {
        *packages,
        PROJECT["readme"],
        *PROJECT["license-files"],
        "Makefile",
        "pyproject.toml",
        "constraints.txt",
    }
    assert "make setup" in DOCKERFILE
    (entry,) = re.findall(r'^ENTRYPOINT \["(.*)"\]$', DOCKERFILE, re.MULTILINE)
    assert entry in PROJECT["scripts"]


def test_the_image_names_no_registry() -> None:
    assert not re.search(r"https?:|\b[\w-]+\.(?:com|org|io|dev|net)\b", DOCKERFILE)
    assert 'ARG TORCH_INDEX=""' in DOCKERFILE
