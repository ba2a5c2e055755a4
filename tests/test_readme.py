"""The README's commands: each one of the runner composes, and the two that set everything up exist."""

import re
import shlex
from pathlib import Path

from runner.config.compose import compose_experiment
from runner.sweeps.callback import expand

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text().replace("\\\n", "")  # a command may go on in the next line
COMMANDS = re.findall(r"^    (python -m runner .*|make \w+)$", TEXT, re.MULTILINE)


def test_every_command_of_the_runner_composes() -> None:
    runs = [shlex.split(line)[3:] for line in COMMANDS if line.startswith("python")]
    assert len(runs) >= 5
    jobs = 0
    for arguments in runs:
        sweep, chooses = arguments[0] == "-m", "hydra/sweeper=optuna" in arguments
        if chooses:  # an extra: what its trials have in common
            jobs_of = [[a for a in arguments[1:] if "sweeper" not in a and "interval" not in a]]
        else:
            jobs_of = expand(arguments[1:]) if sweep else [arguments]
        for overrides in jobs_of:
            compose_experiment(overrides)
            jobs += 1
    assert jobs >= 22  # the sweep alone is 2 x 3 x 3


def test_every_make_target_exists() -> None:
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make")]
    assert targets[:2] == ["demo", "test"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
