"""The version of each stage's algorithm. Raise it by hand when the result changes for the same configuration:
tests/runner/training/test_versions.py fails if that was forgotten."""

VERSIONS = {"prepare": 2, "finetune": 2, "teacher": 1, "prune": 4, "evaluate": 1}
