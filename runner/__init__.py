"""The experiment runner: from composed YAML to a verified, scored and logged model. Begin with `experiment.py`."""

import os

try:
    os.getcwd()
except FileNotFoundError:  # torch would end the process without naming the reason
    raise SystemExit("error: the working folder was deleted; change to one that exists, then run again") from None
