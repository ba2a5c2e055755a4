"""A CPU runtime for encoders whose weights are sparse in 4x1 blocks (also 8x1, 16x1).

    fast = runtime.load("outputs/.../model")
    output = fast(input_ids=..., attention_mask=...)    # as the Hugging Face model's
    print(fast.report)                                  # what runs it, and why
"""
from __future__ import annotations
from collections.abc import Mapping
import torch
from pruning.runtime import compiler, families
from pruning.runtime.encoder import SparseBase, SparseEncoder
from pruning.runtime.families import NAMES

def accelerate(model, precision="auto", threads=None, instructions=None):
    structure = families.find(model)
    assert not isinstance(structure, str), structure
    lib = compiler.library(instructions)
    if precision == "auto":
        precision = compiler.precisions(lib.instructions)[0]
    each = dict(precision) if isinstance(precision, Mapping) else dict.fromkeys(NAMES, precision)
    base = SparseBase(model.base_model, SparseEncoder(structure, lib, each, threads))
    if model.base_model is model:
        return base
    setattr(model, model.base_model_prefix, base)
    return model
