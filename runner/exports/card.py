"""The card of an export: that of its model, with the lines that load the export."""

from __future__ import annotations

import re
from collections.abc import Sequence

HERE = "path/to/this/folder"
"""Placeholder for the export's folder."""
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "packed": "model.packed.safetensors",
         "transformers": "model.safetensors"}  # fmt: skip
"""What the command line calls a format -> the file to load."""
_LOADED = {
    "onnx": """import onnxruntime, transformers
tokenizer, model = transformers.AutoTokenizer.from_pretrained("{here}"), onnxruntime.InferenceSession("{here}/{file}")
{outputs} = model.run(None, dict(tokenizer("A text.", return_tensors="np")))""",
    "openvino": """import openvino, transformers
tokenizer, model = transformers.AutoTokenizer.from_pretrained("{here}"), openvino.compile_model("{here}/{file}", "CPU")
{outputs} = model(dict(tokenizer("A text.", return_tensors="np"))).values()""",
    "packed": """import transformers; from pruning import runtime
tokenizer, model = transformers.AutoTokenizer.from_pretrained("{here}"), runtime.load("{here}/{file}")
{outputs} = model(**tokenizer("A text.", return_tensors="pt")).values()""",
    "transformers": """import transformers
tokenizer = transformers.AutoTokenizer.from_pretrained("{here}")
model = transformers.{kind}.from_pretrained("{here}")""",
}
_SMALLER = (
    "This folder has the model with fewer feed-forward channels (config.json names their number): those that compute "
    "nothing are cut out, and its outputs are the same but for rounding. Zeros and files that are counted below are "
    "those of the model before.\n\n"
)


def text(card: str | None, title: str, to: str, outputs: Sequence[str], kind: str) -> str:
    """The card.

    Args:
        card: of the model; None: a minimal one is made.
        title: for a card that is made.
        to: a key of FILES.
        outputs: their names.
        kind: the model's class in transformers.
    """
    if to == "transformers" and card is not None:  # loaded as the model is
        return re.sub(r"^## Load it\n+", lambda heading: heading[0] + _SMALLER, card, count=1, flags=re.M)
    names = ", ".join(outputs) + ("," if len(outputs) == 1 else "")
    lines = _LOADED[to].format(here=HERE, file=FILES[to], outputs=names, kind=kind)
    section = f"## Load it\n\nThis folder has the model as `{FILES[to]}`.\n\n```python\n{lines}\n```\n\n"
    if card is None:
        return f"# {title}\n\n{section}".rstrip() + "\n"
    replaced, count = re.subn(r"^## Load it\n.*?(?=^## |\Z)", lambda _: section, card, count=1, flags=re.M | re.S)
    return replaced if count else f"{card.rstrip()}\n\n{section}".rstrip() + "\n"
