"""A CPU runtime for encoders whose weights are sparse in 4x1 blocks (8x1 and 16x1 are such, too).

    from pruning import runtime

    fast = runtime.load("outputs/bert-base-squad-4x1-s0-0123abcd/model")
    output = fast(input_ids=..., attention_mask=...)  # what the Hugging Face model returns
    print(fast.report)                                # what runs the encoder, and if that is dense torch, why
    runtime.pack(model, "model.packed.safetensors")   # sparse on the disk, too; load() reads it

The whole encoder is one call of compiled code (encoder.c); embeddings, pooler and head are the model's own. What the
runtime cannot compute runs dense in torch, and the report says why.
"""

from pruning.runtime.compiler import Unavailable
from pruning.runtime.model import FastModel, Report, accelerate, load
from pruning.runtime.packed_file import pack
from pruning.runtime.packing import Blocks

__all__ = ["Blocks", "FastModel", "Report", "Unavailable", "accelerate", "load", "pack"]
