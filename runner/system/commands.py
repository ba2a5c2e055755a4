"""The commands: `prune-distill NAME` is `python -m MODULE`. Nothing heavy is imported here."""

from __future__ import annotations

COMMANDS = {
    "results": ("results", "the table of all runs, its pictures and its report"),
    "evaluate": ("runner.evaluate", "score a saved model again, in torch or by the sparse runtime"),
    "inspect": ("runner.inspect", "count the zeros of a saved model, and check its pattern"),
    "sensitivity": ("runner.sensitivity", "which layers bear pruning, from training data alone"),
    "tradeoff": ("runner.tradeoff", "score against speed before any training, as a picture"),
    "benchmark": ("runner.benchmark", "time a saved model, sparse and dense"),
    "export": ("runner.export", "write a saved model as ONNX, OpenVINO or packed"),
    "examples": ("runner.examples", "which examples a pruned model gets wrong, and which kinds"),
    "reproduce": ("runner.reproduce", "run a finished run again, and compare"),
    "share": ("runner.share", "upload a model with its card to the hub"),
    "upload": ("runner.upload", "send what MLflow's server did not get"),
    "runs": ("runner.runs", "finished, interrupted and failed runs, with score, age and size"),
    "cache": ("runner.cache", "what runs share on the disk, and how to free it"),
    "reference": ("runner.reference", "every key of the configuration"),
}
"""Name -> module, and what it does."""
