"""The version of each stage's algorithm. Raise one by hand when its result changes for the same configuration:
tests/runner/training/test_versions.py sees when that was forgotten."""

VERSIONS = {"prepare": 1, "finetune": 2, "teacher": 1, "prune": 4, "evaluate": 1}
