"""The card of an export: that of its model, with the lines that load the export."""

from __future__ import annotations

import re
from collections.abc import Sequence

HERE = "path/to/this/folder"
"""Placeholder for the export's folder."""
FILES = {"onnx": "model.onnx", "openvino": "model.xml", "packed": "model.packed.safetensors"}
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
}


def text(card: str | None, title: str, to: str, outputs: Sequence[str]) -> str:
    """The card.

    Args:
        card: of the model; None: a minimal one is made.
        title: for a card that is made.
        to: a key of FILES.
        outputs: their names.
    """
    names = ", ".join(outputs) + ("," if len(outputs) == 1 else "")
    lines = _LOADED[to].format(here=HERE, file=FILES[to], outputs=names)
    section = f"## Load it\n\nThis folder has the model as `{FILES[to]}`.\n\n```python\n{lines}\n```\n\n"
    if card is None:
        return f"# {title}\n\n{section}".rstrip() + "\n"
    replaced, count = re.subn(r"^## Load it\n.*?(?=^## |\Z)", lambda _: section, card, count=1, flags=re.M | re.S)
    return replaced if count else f"{card.rstrip()}\n\n{section}".rstrip() + "\n"
