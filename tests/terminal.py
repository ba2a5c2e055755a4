"""A terminal for tests: what a person sees there, and Ctrl-C."""

import fcntl
import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

ROOT = Path(__file__).parent.parent


def on_terminal(
    arguments: tuple[str, ...], folder: Path, columns: int = 80, ctrl_c_after: str | None = None
) -> tuple[int, str, str]:
    """Run Python with stderr on a terminal of so many columns.

    Args:
        ctrl_c_after: what the terminal shows when a person presses Ctrl-C.

    Returns:
        The exit status, stdout, and what the terminal got.
    """
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(ours, (24, columns))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, *arguments], cwd=folder, env=environment, text=True, stdin=theirs,
                          stdout=subprocess.PIPE, stderr=theirs, start_new_session=True,
                          preexec_fn=_take_terminal) as process:  # fmt: skip  # noqa: PLW1509
        os.close(theirs)
        shown = b""
        while True:
            try:
                shown += os.read(ours, 65536)
            except OSError:  # Linux: the other end is closed
                break
            if ctrl_c_after is not None and ctrl_c_after.encode() in shown:
                os.write(ours, b"\x03")
                ctrl_c_after = None
        assert process.stdout is not None
        out = process.stdout.read()
    os.close(ours)
    return process.returncode, out, shown.decode()


def _take_terminal() -> None:
    """In the new process: make stdin its terminal, so that Ctrl-C becomes a signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
