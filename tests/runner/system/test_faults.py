"""A handful of the trials of tests/faults: a run that is killed, or whose files are damaged, ends as if nothing had
been. In a process of its own, for it forks: that must not happen where other tests have started threads."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.faults.faults import POINTS, resolve


def test_every_point_is_a_function() -> None:
    for target in (target for targets in POINTS.values() for target in targets):
        holder, name = resolve(target)
        assert callable(getattr(holder, name)), target


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no os.fork")
def test_nothing_is_lost() -> None:
    harness = str(ROOT / "tests" / "faults" / "faults.py")
    done = subprocess.run(
        [sys.executable, harness, "--points", "4", "--damage", "2", "--full", "1"],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "1 outside" in done.stdout
    assert "2 damage" in done.stdout
    assert done.stdout.rstrip().endswith("lost: 0")
