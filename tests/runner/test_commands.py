"""`prune-distill`: its help, its version, its commands, mistakes in their names, Ctrl-C, and a Python without packages.

It is called by `python -m runner`, which is the same function.
"""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from runner import __main__ as command_line
from runner.config import help
from runner.config.keys import CHOICES
from runner.system import completion, spelling
from runner.system.commands import COMMANDS
from tests.conftest import ROOT, Cli
from tests.terminal import on_terminal


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the console script, as pip makes it."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    ((name, place),) = scripts.items()
    module, _, function = place.partition(":")
    folder = tmp_path_factory.mktemp("bin")
    text = f"#!{sys.executable}\nimport sys\nfrom {module} import {function}\nsys.exit({function}())\n"
    (folder / name).write_text(text, encoding="utf-8")
    (folder / name).chmod(0o755)
    return folder


# --- help and version ---------------------------------------------------------------------------------------


def test_the_help_is_in_our_words(cli: Cli) -> None:
    done = cli("-m", "runner", "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert not re.search("schema|Hydra is|powered by|== Config", done.stdout)
    examples = done.stdout.split("\nExamples\n")[1].split("\n\n")[0]
    assert len(re.findall("^  prune-distill ", examples, re.MULTILINE)) == 5
    for group in CHOICES:
        assert re.search(rf"^  {group} +\S.*\n( {{18}}\S.*\n)+", done.stdout, re.MULTILINE), group
    for command in COMMANDS:
        assert re.search(rf"^  {command} +\S", done.stdout, re.MULTILINE), command
    assert {"bert-mini", "squad", "2:4", "snip_momentum"} <= set(re.split(r"[\s,]+", done.stdout))


def test_the_help_has_the_options_of_ones_own_folder(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine" / "dataset").mkdir(parents=True)
    (tmp_path / "mine" / "dataset" / "reviews.yaml").write_text("defaults: [/schema/dataset/Classify]\n")
    done = cli("-m", "runner", "--config-dir", "mine", "--help")
    assert done.returncode == 0, done.stderr
    assert "reviews, rte," in " ".join(done.stdout.split())
    plain = cli("-m", "runner", "--help")
    without = " ".join(done.stdout.split()).replace("reviews, rte,", "rte,")
    assert without == " ".join(plain.stdout.split())  # Hydra's list of options is ours


def test_each_group_has_a_sentence() -> None:
    folders = {folder.name for folder in (ROOT / "conf").iterdir() if folder.is_dir() and folder.name[0] not in "_."}
    assert help.GROUPS.keys() == {*CHOICES} == folders - {"hydra"}


@pytest.mark.parametrize("arguments", [("--version",), ("run", "--version"), ("model=tiny", "--version")])
def test_the_version_is_ours(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
                             arguments: tuple[str, ...]) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["prune-distill", *arguments])
    assert command_line.main() == 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    assert capsys.readouterr().out == f"prune-distill {version}\n"


# --- commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_its_module(cli: Cli, name: str) -> None:
    arguments = ("--help",) if name != "reference" else ()
    by_name, by_module = cli("-m", "runner", name, *arguments), cli("-m", COMMANDS[name][0], *arguments)
    assert by_name.returncode == by_module.returncode == 0, by_name.stderr
    assert (by_name.stdout, by_name.stderr) == (by_module.stdout, by_module.stderr)
    assert by_name.stdout


def test_its_exit_status_is_that_of_its_module(cli: Cli) -> None:
    done = cli("-m", "runner", "inspect", "nowhere")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "error: nowhere: there is no such folder\n")
    assert cli("-m", "runner", "cache", "wash").returncode == 2  # argparse's


def test_run_takes_hydras_own_flags(cli: Cli) -> None:
    for flags in (["--cfg", "job", "--resolve"], ["--info", "searchpath"]):
        plain = cli("-m", "runner", "model=tiny", "dataset=demo", *flags)
        named = cli("-m", "runner", "run", "model=tiny", "dataset=demo", *flags)
        assert plain.returncode == named.returncode == 0, named.stderr
        assert plain.stdout == named.stdout
        assert plain.stdout
    done = cli("-m", "runner", "run", "-m", "model=tiny", "dataset=demo", "pattern=4x1,nonsense")
    assert done.returncode == 1
    assert "there is no pattern/nonsense" in done.stderr


@pytest.mark.parametrize(("typed", "meant"), [("resluts", "results"), ("evalute", "evaluate"), ("Run", "run"),
                                              ("benchmarks", "benchmark")])  # fmt: skip
def test_a_misspelled_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
                              typed: str, meant: str) -> None:  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["prune-distill", typed])
    assert command_line.main() == 1
    assert capsys.readouterr().err == f"error: {typed}: there is no such command; did you mean {meant}?\n"


def test_a_word_that_is_no_command_is_read_as_an_override(cli: Cli) -> None:
    done = cli("-m", "runner", "tiny")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: tiny: an override is KEY=VALUE")


def test_a_reader_that_closes_the_pipe_ends_the_help_without_a_traceback(tmp_path: Path) -> None:
    script = f"'{sys.executable}' -m runner --help | head -1"
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_the_words_of_tab_completion_are_no_keys() -> None:
    assert spelling.mistake(["-sc", "install=bash"]) is None
    assert spelling.mistake(["modle=tiny"]) is not None


@pytest.mark.parametrize("question", ["install=tcsh", "query=", "bash", "-m"])
def test_a_question_that_no_shell_asks_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], question: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["prune-distill", "-sc", question])
    assert command_line.main() == 1
    message = f"error: -sc {question}: expected install=SHELL with bash, zsh or fish\n"
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(("line", "words"), [
    ("prune-distill model=ti", {"model=tiny"}),
    ("prune-distill run model=ti", {"model=tiny"}),
    ("prune-distill res", {"results"}),
    ("prune-distill pattern=4x1 res", set()),
    ("prune-distill results --w", set()),
    ("prune-distill inspect ./mi", {"./mine/"}),
    ("prune-distill evaluate mine dataset=sst", {"dataset=sst2"}),
    ("prune-distill evaluate dataset=sst", set()),
    ("prune-distill tradeoff model=ti", {"model=tiny"}),
    ("prune-distill hyd", {"hydra/launcher="}),
    ("prune-distill -m pattern=4x1,lo", {"pattern=4x1,locked"}),
    ("prune-distill pattern=2:4 recipe.finetune.e", {"recipe.finetune.epochs="}),
    ("prune-distill pattern=2:4 recipe.fi", {"recipe.finetune."}),
    ("prune-distill fin", {"finetune."}),
    ("prune-distill crit", {"criterion.", "criterion="}),
    ("prune-distill ++train.precision=f", {"++train.precision=float32", "++train.precision=fp16"}),
    ("prune-distill --mul", {"--multirun"}),
    ("prune-distill model.path=./mi", {"model.path=./mine/"}),
    ("prune-distill dataset.path=./mine/r", {"dataset.path=./mine/rows.csv"}),
    ("prune-distill model.path=./nowhere/", set()),
    ("prune-distill hydra/launcher=jo", None),
    ("prune-distill hydra.", None),
    ("prune-distill plugins=[mine] criterion=m", None),
    ("prune-distill criterion=m --config-dir=mine", None),
])  # fmt: skip
def test_what_a_word_may_become(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str,
                                words: set[str] | None) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    for name in ("rows.csv", "r o.csv", "r$(x).csv", "r;x"):
        (tmp_path / "mine" / name).touch()
    found = completion.answer(line)
    assert words == (None if found is None else {*found})


def test_an_empty_word_may_become_any_command_group_or_key() -> None:
    found = completion.answer("prune-distill ")
    assert found is not None
    assert found == sorted({*found})
    assert {"run", *COMMANDS, *(f"{group}=" for group in CHOICES), "train.", "seed="} <= {*found}
    assert not any("*" in word or word.count(".") > 1 for word in found)


@pytest.mark.slow
@pytest.mark.parametrize(("line", "words"), [("prune-distill model=ti", {"model=tiny"}),
                                             ("prune-distill hydra/launcher=jo", {"hydra/launcher=joblib"}),
                                             ("prune-distill run pattern=lo", {"pattern=locked"})])  # fmt: skip
def test_bash_completes(console: Path, tmp_path: Path, line: str, words: set[str]) -> None:
    script = 'eval "$(prune-distill -sc install=bash)"; hydra_bash_completion; echo "${COMPREPLY[@]}"'
    environment = {**os.environ, "PATH": f"{console}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
                   "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_CWORD": str(line.count(" "))}  # fmt: skip
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert set(done.stdout.split()) == words


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", "16 4 8\n"), ("fish", "pattern=2:16\npattern=2:4\npattern=2:8\n")]
)
def test_to_bash_a_word_begins_behind_a_colon(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], shell: str, words: str
) -> None:
    monkeypatch.setenv("COMP_LINE", "prune-distill pattern=2:")
    assert completion.reply(["-sc", f"query={shell}"])
    assert capsys.readouterr().out == words


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    code = (
        "import sys; from runner import __main__; sys.argv = ['x', '-sc', 'query=fish']; "
        "print(__main__.main(), {'torch', 'hydra'} & {*sys.modules})"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COMP_LINE": "prune-distill criterion=o"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert done.stdout == "criterion=obs\ncriterion=obs_sequential\n0 set()\n"


# --- Ctrl-C -------------------------------------------------------------------------------------------------

SMALL = (
    "-m", "runner", "model=tiny", "dataset=demo", "dataset.train_examples=64", "dataset.eval_examples=60",
    "schedule=short", "train.max_steps=20", "train.per_device_train_batch_size=8", "finetune.max_steps=200",
    "finetune.per_device_train_batch_size=8",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "message"), [
    ("pattern 4x1, seed 0 ->", "interrupted; the same command resumes where this one stopped"),
    ("Fine-tuning", r"interrupted at step \d+; the same command resumes from there"),
])  # fmt: skip
@pytest.mark.parametrize("sweep", [False, True])
def test_ctrl_c_says_that_the_same_command_resumes(tmp_path: Path, moment: str, message: str, sweep: bool) -> None:
    command = (*SMALL[:2], "-m", *SMALL[2:], "seed=0,1") if sweep else SMALL
    status, out, shown = on_terminal(command, tmp_path, ctrl_c_after=moment)
    assert (status, out) == (130, "")
    assert "Traceback" not in shown
    last = re.split(r"[\r\n]+", shown.strip())[-1]
    assert re.fullmatch(message, last) or "interrupted at step" in last, shown  # the training may have begun meanwhile
    if moment == "Fine-tuning" and not sweep:
        status, out, shown = on_terminal(command, tmp_path)
        assert status == 0, shown
        assert out.startswith("tiny on demo, 4x1, seed 0\n")


@pytest.mark.parametrize(("module", "library"), [("runner", "hydra"), ("runner.cache", "filelock")])
def test_ctrl_c_while_libraries_are_imported(tmp_path: Path, module: str, library: str) -> None:
    (tmp_path / f"{library}.py").write_text("raise KeyboardInterrupt\n")
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-m", module], cwd=tmp_path, env=environment, capture_output=True, text=True,
                          check=False)  # fmt: skip
    assert done.returncode in (130, -2)  # a shell shows 130 for both
    assert (done.stdout, done.stderr) == ("", "interrupted\n")


# --- outside of the environment -----------------------------------------------------------------------------


@pytest.mark.parametrize("module", ["runner", "runner.cache", "runner.evaluate"])
def test_a_python_without_the_packages_says_what_to_do(tmp_path: Path, module: str) -> None:
    done = subprocess.run([sys.executable, "-S", "-m", module, "model=tiny"], cwd=tmp_path, capture_output=True,
                          env={"PYTHONPATH": str(ROOT)}, text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {sys.executable} has no package hydra: ")
    assert f"{ROOT}/.venv/bin/python" in line


# --- a reader that leaves, as `head` does -------------------------------------------------------------------


CLOSED = """
import os, runpy, sys
reading, writing = os.pipe()
os.close(reading)
os.dup2(writing, 1)
sys.argv = [{module!r}, *{arguments!r}]
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["runner", *(module for module, _ in COMMANDS.values())])
def test_a_reader_that_has_enough_is_no_error(cli: Cli, module: str) -> None:
    arguments = [] if module == "runner.reference" else ["--help"]
    done = cli("-c", CLOSED.format(module=module, arguments=arguments))
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_still_ends_with_its_status(cli: Cli) -> None:
    done = cli("-c", CLOSED.format(module="runner.inspect", arguments=["nowhere"]))
    assert (done.returncode, done.stderr) == (1, "error: nowhere: there is no such folder\n")
    assert cli("-c", CLOSED.format(module="runner.inspect", arguments=["--nothing"])).returncode == 2
