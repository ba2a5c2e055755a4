"""Texts from outside as Markdown that they cannot break out of."""

from __future__ import annotations

import re


def line(text: object) -> str:
    """The text as one line without unprintable characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in str(text)).split())


def plain(text: object) -> str:
    """The text as Markdown without any markup of its own."""
    return re.sub(r"([\\`*_{}\[\]<>#|&~$!])", r"\\\1", line(text))


def code(text: object) -> str:
    """The text as inline code of Markdown, which it cannot break out of."""
    inside = line(text) or " "
    fence = "`" * (_longest_run(inside) + 1)
    return f"{fence} {inside} {fence}" if "`" in inside else f"{fence}{inside}{fence}"


def block(text: str, language: str) -> str:
    """Lines as a fenced code block of Markdown, which they cannot break out of."""
    fence = "`" * max(3, _longest_run(text) + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
