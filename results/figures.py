"""Style of the pictures, and their rendering as files. Markers, lines and hatches make them readable without colour."""

from __future__ import annotations

import io
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

# Okabe and Ito (2008): colour-blind readers can distinguish them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "os^Dv<>"
HATCHES = ("", "//", "--", "\\\\", "||", "xx", "++")  # lines only: circles would take ten times the bytes
STYLE: Any = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "legend.frameon": False,
    "hatch.linewidth": 0.5,
    "svg.fonttype": "none",  # text as text: a tenth of the bytes
    "svg.hashsalt": "prune-distill",  # the same picture has the same bytes
    "text.parse_math": False,  # labels are people's own
}


def rendered(figure: Figure, form: str) -> bytes:
    """The picture as the content of a file of the format "png", "svg", "pdf" or another that matplotlib has; the same
    bytes each time for SVG.

    Raises:
        ValueError: matplotlib does not have this format.
    """
    content = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(content, format=form, dpi=200, metadata={"Date": None} if form == "svg" else None)
    return content.getvalue()
