"""A process that the fork server makes does what a process of its own does."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import fork_server
from tests.conftest import ROOT, Cli

SEEN = """
import logging, os, sys, threading, warnings
print(__name__, sys.argv, os.getcwd(), sys.path[:2], sys.stdin.read(), dict(sorted(os.environ.items())))
print(sys.flags, sys.stdout.encoding, sys.stdout.line_buffering, sys.stderr.errors, sys.stdout.isatty())
print([n for n in sys.modules if n.split('.')[0] in ('runner', 'results', 'pruning')], threading.active_count())
print(logging.getLogger().level, logging.getLogger().handlers)
warnings.warn('look')
logging.getLogger('me').warning('out')
"""
RUN = ("model=tiny", "dataset=demo", "dataset.train_examples=32", "dataset.eval_examples=16", "train.max_steps=3",
       "train.per_device_train_batch_size=8", "finetune.max_steps=2")  # fmt: skip


def both(arguments: tuple[str, ...], tmp_path: Path, **changes: str) -> list[subprocess.CompletedProcess[str]]:
    """What the server and a process of its own do, each in an empty folder of the same name."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "NO_COLOR": "1", **changes}
    done = []
    for name in ("forked", "own"):
        folder = tmp_path / "here"
        folder.mkdir()
        if name == "forked":
            done.append(fork_server.run(arguments, folder, environment, 120))
        else:
            done.append(subprocess.run([sys.executable, *arguments], cwd=folder, env=environment, capture_output=True,
                                       text=True, timeout=120, stdin=subprocess.DEVNULL, check=False))  # fmt: skip
        folder.rename(tmp_path / name)
    return done


@pytest.mark.parametrize(("arguments", "status"), [
    (("-c", SEEN, "a", "b"), 0),
    (("-c", "import sys; sys.exit('gone')"), 1),
    (("-c", "import atexit; atexit.register(print, 'end'); raise SystemExit(7)"), 7),
    (("-c", "def f():\n  1/0\nf()"), 1),
    (("-c", "raise KeyboardInterrupt"), -signal.SIGINT),
    (("-c", "import os; os.kill(os.getpid(), 9)"), -signal.SIGKILL),
    (("-c", "import os; print('lost'); os.write(2, b'x'); os._exit(3)"), 3),
    (("-m", "runner.nothing"), 1),
    (("-m", "json.tool", "nowhere.json"), 2),
    (("-m", "runner", "pattern=nonsense"), 1),
    (("-m", "runner", "model=tiny", "--cfg", "job"), 0),
    (("-m", "results"), 1),
], ids=str)  # fmt: skip
def test_the_same_status_and_output(arguments: tuple[str, ...], status: int, tmp_path: Path) -> None:
    forked, own = both(arguments, tmp_path, ANOTHER="x")
    assert (forked.returncode, forked.stdout, forked.stderr) == (own.returncode, own.stdout, own.stderr)
    assert forked.returncode == status, forked.stderr


@pytest.mark.slow
def test_the_same_run(tmp_path: Path) -> None:
    forked, own = both(("-m", "runner", *RUN), tmp_path)
    assert forked.returncode == own.returncode == 0, forked.stderr + own.stderr
    varying = re.compile(
        r"[\d.,:?]+( ?[a-zA-Z/]+)?\]|\d+(\.\d+)?it/s|[0-9a-f]{32}|[█▏▎▍▌▋▊▉ ]+\||run at [\d.]+x|[\d.]+ [kMG]B free"
    )
    texts = [
        [varying.sub("#", line) for line in done.stderr.splitlines() if "%|" not in line] for done in (forked, own)
    ]
    assert texts[0] == texts[1]
    (one,), (other,) = (list((tmp_path / name / "outputs").iterdir()) for name in ("forked", "own"))
    assert one.name == other.name
    for file in sorted(p.relative_to(one) for p in (one / "model").iterdir()):
        if file.suffix == ".safetensors":
            assert (one / file).read_bytes() == (other / file).read_bytes()
    assert {p.name for p in one.rglob("*")} == {p.name for p in other.rglob("*")}


def is_alive(group: int) -> bool:
    """Whether a process group has a process."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_that_takes_too_long_is_killed(cli: Cli, tmp_path: Path) -> None:
    code = "import subprocess, os; print(os.getpid(), flush=True); subprocess.run(['sleep', '600'])"
    with pytest.raises(subprocess.TimeoutExpired) as error:
        cli("-c", code, timeout=1)
    end = time.monotonic() + 60  # until the system has reaped the killed processes
    while is_alive(int(error.value.output)):
        assert time.monotonic() < end
        time.sleep(0.05)
    assert cli("-c", "print(1)").stdout == "1\n"


def test_generators_differ(cli: Cli) -> None:
    code = "import random, numpy, torch; print(random.random(), numpy.random.rand(), torch.rand(1).item())"
    assert not {*cli("-c", code).stdout.split()} & {*cli("-c", code).stdout.split()}
