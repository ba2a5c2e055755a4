"""Style of all pictures, and their rendering as files.

A pattern has one colour and marker in all pictures of all runs, a kind of matrix one colour and hatch, a control one
colour and line. Markers, lines and hatches make them readable without colour.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.figure import Figure

from results.layers import KINDS

# Okabe and Ito (2008): colour-blind readers can distinguish them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
MARKERS = "os^Dv<>"
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1, 1, 1, 1, 1)))
HATCHES = ("", "//", "--", "\\\\", "||", "xx", "++")  # lines only: circles would take ten times the bytes
DENSE_COLOUR, GREY, CAPTION = "#000000", "#666666", "#444444"
CONTROLS = (("#882255", "--"), ("#7A5C00", "-."), ("#555555", ":"))
"""Colour and line of same-budget controls."""
SEQUENTIAL = "cividis"
"""Colour map of heat maps: its lightness rises evenly, for colour-blind readers and in print."""
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
    "pdf.fonttype": 42,  # TrueType, which publishers ask for
    "text.parse_math": False,  # labels are people's own
}
_ORDER = ("4x1", "2:4", "1x1", "8x1", "16x1", "32x1", "rows", "columns", "4x4", "1:4", "4:8", "locked", "1x4", "1:2")
_FIXED = {name: at for at, name in enumerate(_ORDER)} | {"structured": 17, "heads": 18, "ffn": 19}
"""Patterns whose styles are chosen to differ; any other pattern has that of its name's checksum."""
_BESIDE, _BESIDE_LINE, _CHARACTERS, _LINE = 32, 0.19, 13, 0.15
"""Characters of a label that fits right of the axes, and inches of its line; characters of one below them, for each
inch, and inches of a line of it."""
_TAG, _STYLED, _PLACES = re.compile("<[^>]+>"), re.compile(' style="([^"]*)"'), re.compile('( [dxy]=")([^"]*)"')
_UNDATED = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}


@dataclass(frozen=True)
class Mark:
    """How a line and its points are drawn."""

    colour: str
    marker: str
    line: Any = "-"
    """As matplotlib's linestyle."""


def mark_of(pattern: str, variant: int = 0) -> Mark:
    """The mark of a pattern. Its variants (rows with other criteria, say) have its colour, and markers and lines of
    their own."""
    count = len(COLOURS)
    return mark_at(_FIXED.get(pattern, 2 * count + crc32(pattern.encode()) % (5 * count)), variant, variant)


def mark_at(place: int, shift: int, line: int) -> Mark:
    """The mark at a place of the list of all colours and markers.

    Args:
        shift: to a later marker of the same colour.
        line: which of `LINES`.
    """
    count = len(COLOURS)
    marker = (place + place // count + shift) % count  # so that no two of count^2 places have both in common
    return Mark(COLOURS[place % count], MARKERS[marker], LINES[line % len(LINES)])


def marks_of(patterns: Mapping[str, str]) -> dict[str, Mark]:
    """The marks of lines: label -> pattern becomes label -> mark. Lines of one pattern are its variants, in order."""
    seen: dict[str, int] = {}
    marks = {}
    for label, pattern in patterns.items():
        seen[pattern] = seen.get(pattern, -1) + 1
        marks[label] = mark_of(pattern, seen[pattern])
    return marks


def fills_of(kinds: Sequence[str], other: str) -> dict[str, tuple[str, str]]:
    """Colour and hatch of each kind of matrix: fixed for `KINDS`, grey for `other`, what is free for the rest."""
    every = list(zip(COLOURS, HATCHES, strict=True))
    fixed = dict(zip(KINDS, every, strict=False)) | {other: every[-1]}
    free = [fill for kind, fill in fixed.items() if kind not in kinds] + every
    return {kind: fixed[kind] if kind in fixed else free.pop(0) for kind in kinds}


def titled(about: str | None, what: str, width: int = 72) -> str:
    """A title of two parts: what the picture is about (a run, or a model and its dataset), and what it shows."""
    return "\n".join([*textwrap.wrap(about or "", width), what])


def legend(figure: Figure, entries: Sequence[Artist], caption: str) -> None:
    """The legend of labelled lines and the caption: right of the axes and below; both below where a label is long.

    Where two have one label, the last one stands for it.
    """
    named = {str(entry.get_label()): entry for entry in entries}
    if all(len(label) <= _BESIDE for label in named):
        figure.set_figheight(max(figure.get_figheight(), _BESIDE_LINE * (len(named) + 4)))
        figure.legend(named.values(), named.keys(), fontsize=9, loc="outside right center")
        figure.supxlabel(caption, fontsize=8, color=CAPTION)
        return
    width = int(figure.get_figwidth() * _CHARACTERS)
    labels = [textwrap.fill(label, width, subsequent_indent="    ") for label in named]
    lines = sum(text.count("\n") + 1 for text in (*labels, caption))
    figure.set_figheight(figure.get_figheight() + lines * _LINE)
    box = figure.legend(named.values(), labels, fontsize=8, loc="outside lower left", alignment="left", title=caption)
    box.get_title().set(fontsize=8, color=CAPTION)


def rendered(figure: Figure, form: str) -> bytes:
    """The picture as the content of a file of the format "png", "svg", "pdf" or another that matplotlib has; of these
    three the same bytes each time.

    Raises:
        ValueError: matplotlib does not have this format.
    """
    content = io.BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(content, format=form, dpi=200, metadata=_UNDATED.get(form))
    return content.getvalue()


def slim(svg: bytes) -> bytes:
    """An SVG file of `rendered` in half the bytes: coordinates in hundredths of a point, one class for each style that
    elements share, no indents. Labels are as they were: only tags are changed, in which no label stands."""
    text = svg.decode()
    shared = Counter(style for tag in _TAG.findall(text) for style in _STYLED.findall(tag))
    names = {style: f"s{at}" for at, (style, count) in enumerate(shared.most_common()) if count > 1}

    def shorter(found: re.Match[str]) -> str:
        tag = re.sub(r'^<g id="[^"]*"', "<g", found[0])
        tag = _STYLED.sub(lambda style: f' class="{names[style[1]]}"' if style[1] in names else style[0], tag)
        return _PLACES.sub(lambda place: f'{place[1]}{_rounded(place[2])}"', tag)

    text = re.sub(r"\n +<", "\n<", _TAG.sub(shorter, text))
    classes = "".join(f".{name}{{{style}}}" for style, name in names.items())
    return text.replace("</style>", f"{classes}</style>", 1).encode()


def _rounded(places: str) -> str:
    numbers = re.sub(r"-?\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}".rstrip("0").rstrip("."), places)
    return re.sub(r"\s*([A-Za-z])\s*", r"\1", numbers).strip()
