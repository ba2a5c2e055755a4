"""README.md and docs/: each command runs where it needs no network, else composes or parses; files are made; links lead
somewhere."""

import importlib.util
import math
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from runner.config.compose import compose_experiment
from runner.config.runtime import split
from runner.sweeps.callback import expand
from tests.conftest import Cli

ROOT = Path(__file__).parent.parent
PAGES = {
    file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8")
    for file in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    if file.name != "reference.md"  # made by a command: tests/runner/test_reference.py
}
GUIDE = "docs/guide.md"


def blocks(page: str) -> list[tuple[str, str, str]]:
    """Language, file name and body of each fenced block of a page."""
    return re.findall(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', PAGES[page], re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The shell commands of a page, without comments; one may continue in the next line."""
    lines = [line for kind, _, body in blocks(page) if kind == "sh" for line in body.replace("\\\n", " ").splitlines()]
    return [line for line in lines if not line.startswith("#")]


COMMANDS = [line for page in PAGES for line in commands(page)]
# Of the runner: also under a launcher of ranks.
RUNS = [
    line for line in COMMANDS if re.match(r"(python|torchrun|accelerate launch) .*?-m runner(\.evaluate)? ", f"{line} ")
]
MAKES = [line for line in COMMANDS if line.startswith("make ")]
TOOLS = [line for line in COMMANDS if re.match(r"python -m (results|runner\.(?!evaluate))", line)]
OTHERS = [line for line in COMMANDS if line not in (*RUNS, *MAKES, *TOOLS)]
EMBEDDED = [
    line
    for line in commands(GUIDE)
    if ("model=tiny" in line and "debug=" not in line and "mine" not in line)
    or line.split()[-1] in ("results", "--help")
]


def test_all_commands_were_seen() -> None:
    assert {page: len(commands(page)) for page in PAGES} == {
        **{"README.md": 17, "docs/develop.md": 11, GUIDE: 40, "docs/index.md": 0, "docs/measured.md": 18},
        **{"docs/results.md": 12, "docs/running.md": 19, "docs/speed.md": 5},
    }
    assert (len(RUNS), len(MAKES), len(TOOLS), len(EMBEDDED)) == (74, 15, 30, 5)
    assert sorted(OTHERS) == [
        ".venv/bin/pip install -c constraints.txt -e '.[optuna]'",
        ".venv/bin/python -m tests.bad_input -k A2",
        "ray start --head",
    ]


def jobs(line: str) -> list[list[str]]:
    """The overrides of each job of a command of the runner."""
    words = shlex.split(line)
    module = next(i for i, word in enumerate(words) if word.startswith("runner"))
    arguments = [word for word in words[module + 1 :] if word not in ("--cfg", "job", "--resolve", "--help")]
    if words[module] == "runner.evaluate":
        return [["model=hub", "model.path=x", *split(arguments[1:])[1]]]
    if arguments[:1] == ["--config-dir"]:
        arguments = arguments[2:]
    if "optuna" in line:  # an extra: what its trials have in common
        return [[word for word in arguments[1:] if not re.search("optuna|sweeper|interval", word)]]
    return expand(arguments[1:]) if arguments[:1] == ["-m"] else [arguments]


@pytest.mark.parametrize("line", [line for line in dict.fromkeys(RUNS) if "mine" not in line and line not in EMBEDDED])
def test_commands_of_the_runner_compose(line: str) -> None:
    every = jobs(line)
    swept = r"(model|dataset|pattern|pattern\.target_sparsity|seed|schedule)="
    values = [word.split(",") for word in line.split() if re.match(swept, word)]
    assert len(every) == math.prod(map(len, values))
    for job in {tuple(word for word in job if not word.startswith("seed=")) for job in every}:
        compose_experiment(job)


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert {"make demo", "make test", "make test-all"} <= {*MAKES}
    for line in MAKES:
        assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line


@pytest.mark.parametrize("line", dict.fromkeys(TOOLS))
def test_options_of_the_other_commands_exist(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    module, *arguments = shlex.split(line.partition(" > ")[0])[2:]
    if not arguments:
        assert importlib.util.find_spec(module)
        return
    main = importlib.import_module("results.__main__" if module == "results" else module).main
    with pytest.raises(SystemExit) as exit:
        main(["--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    for word in arguments:
        if word.startswith("--") or word in ("list", "clean", "picture", "report"):
            assert re.search(rf"(?<![\w-]){word}\b", text), (line, word)


@pytest.mark.slow
def test_commands_that_need_no_network_run(cli: Cli) -> None:
    for line in EMBEDDED:
        done = cli(*shlex.split(line)[1:])
        assert done.returncode == 0, (line, done.stderr)
        if line == "python -m results":
            assert "dense" in done.stdout
            assert "2:4" in done.stdout


def test_files_of_the_guide_serve_its_commands(cli: Cli, tmp_path: Path) -> None:
    assert {kind for kind, _, _ in blocks(GUIDE)} == {"sh", "yaml", "csv", "python"}
    assert all(bool(name) == (kind != "sh") for kind, name, _ in blocks(GUIDE))
    files = {name: body for _, name, body in blocks(GUIDE) if name}
    assert len(files) == 6
    for name, body in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(body, encoding="utf-8")
    (line,) = [line for line in COMMANDS if "--config-dir" in line]
    done = cli(*shlex.split(line)[1:], "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "path: reviews.csv" in done.stdout
    done = cli("-m", "runner", "--config-dir", "mine", "model=mine", "--cfg", "job")
    assert done.returncode == 0, done.stderr
    assert "finetuned: csarron/bert-base-uncased-squad-v1" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(("script", "text"), [("compare.py", "dense_mean")])
def test_scripts_of_the_guide_run(cli: Cli, tmp_path: Path, script: str, text: str) -> None:
    (tmp_path / script).write_text(next(body for _, name, body in blocks(GUIDE) if name == script), encoding="utf-8")
    done = cli("-c", (tmp_path / script).read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


def anchors(text: str) -> list[str]:
    """The anchors that GitHub gives the chapters of a page."""
    titles = re.findall(r"^##+ (.*)$", text, re.MULTILINE)
    return [re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize(("page", "count"), [(GUIDE, 13), ("docs/running.md", 8), ("docs/results.md", 6),
                                             ("docs/develop.md", 9)])  # fmt: skip
def test_every_chapter_is_in_the_list_at_the_top(page: str, count: int) -> None:
    listed = re.findall(r"^\* \[(.*)\]\(#(.*)\)$", PAGES[page], re.MULTILINE)
    assert [title for title, _ in listed] == re.findall(r"^## (.*)$", PAGES[page], re.MULTILINE)
    assert [anchor for _, anchor in listed] == anchors(re.sub(r"^###.*$", "", PAGES[page], flags=re.MULTILINE))
    assert len(listed) == count


def test_links_lead_to_files_and_chapters() -> None:
    count = 0
    for page, text in PAGES.items():
        for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
            file = (ROOT / page).parent / target if target else ROOT / page
            assert file.is_file(), (page, target)
            assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), (page, target, anchor)
            count += 1
    assert count == 92


def test_the_site_has_every_page() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    pages = [page for entry in settings["nav"] for page in entry.values()]
    assert sorted(pages) == sorted(file.name for file in (ROOT / "docs").glob("*.md"))
    assert (settings["strict"], settings["theme"]["font"]) == (True, False)


@pytest.mark.slow
def test_the_site_builds(tmp_path: Path) -> None:
    """Strictly: a link or an anchor that leads nowhere ends it. Blocks with a file name are blocks."""
    for library in ("mkdocs", "material"):
        pytest.importorskip(library)
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "-d", str(tmp_path)], check=True, cwd=ROOT)
    guide = (tmp_path / "guide" / "index.html").read_text(encoding="utf-8")
    assert '<span class="filename">reviews.csv</span>' in guide
    assert "```" not in guide


def test_the_readme_is_short() -> None:
    assert len(PAGES["README.md"].splitlines()) <= 150
