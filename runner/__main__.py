"""The command line: `python -m runner model=bert-large pattern=4x1`; -m for a sweep, --help for the groups."""

import os
import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from runner import config
from runner.edge import guarded

os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to the edge, where they are told


@hydra.main(config_path="pkg://conf", config_name="config", version_base="1.3")
def job(composed: DictConfig) -> None:
    """One run, in this process or in one of a launcher's."""
    from runner.experiment import run

    config.register()
    hydra_config = HydraConfig.get()

    def once() -> None:
        choices = config.chosen_options(hydra_config.runtime.choices)
        run(*config.load(OmegaConf.create(composed), choices, list(hydra_config.overrides.task)))

    if hydra_config.mode is RunMode.MULTIRUN:
        once()  # raises: to exit here would end the whole sweep
    elif status := guarded(once):
        sys.exit(status)


def main() -> int:
    """Run the command line; the exit status is the process's."""
    config.register()
    return guarded(job)


if __name__ == "__main__":
    sys.exit(main())
