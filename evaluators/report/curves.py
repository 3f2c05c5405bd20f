"""Curves over training steps as SVG that takes its colours from the page around it, in light and in dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

COLORS = ("#3b82c4", "#d9822b", "#2f9e6e", "#c2527d", "#8a6bd1", "#8c7a3d")
"""Readable on white and on black alike."""
_INK = "#010203"  # replaced by the colour of the text around the curve
_MOST_POINTS = 400


@dataclass(frozen=True)
class Curve:
    """Values (N,) at steps (N,), with standard errors where they are known (0 elsewhere)."""

    steps: np.ndarray
    values: np.ndarray
    errors: np.ndarray | None = None


def draw(curves: Mapping[str, Curve], label: str, colors: Mapping[str, str], number: int) -> str:
    """An ``<svg>`` element.

    Args:
        curves: by the name of the run.
        label: of the vertical axis.
        colors: by the name of the run.
        number: of the drawing on its page, which keeps the names inside it apart from those of others.
    """
    settings = {
        "svg.fonttype": "none", "svg.hashsalt": f"curve {number}", "font.family": "sans-serif", "font.size": 10,
        "text.color": _INK, "axes.labelcolor": _INK, "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK,
    }  # fmt: skip
    with rc_context(settings):
        figure = Figure(figsize=(5.4, 3.0), layout="constrained")
        axes = figure.add_subplot()
        axes.spines[["top", "right"]].set_visible(False)
        for name, curve in curves.items():
            _draw_one(axes, curve, colors[name], name)
        axes.set_xlabel("step")
        axes.set_ylabel(label)
        if _spans_decades([curve.values for curve in curves.values()]):
            axes.set_yscale("log")
        axes.grid(color=_INK, alpha=0.12, linewidth=0.6)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _for_a_page(file.getvalue(), label)


def _draw_one(axes, curve: Curve, color: str, name: str) -> None:  # type: ignore[no-untyped-def]
    if curve.errors is not None:
        axes.errorbar(
            curve.steps, curve.values, yerr=curve.errors, color=color, marker="o", markersize=3.5, linewidth=1.2,
            capsize=2, label=name,
        )  # fmt: skip
        return
    if len(curve.steps) > _MOST_POINTS:
        edges = np.linspace(0, len(curve.steps), _MOST_POINTS + 1).astype(int)
        pieces = [slice(*pair) for pair in pairwise(edges)]
        steps = np.array([curve.steps[piece].mean() for piece in pieces])
        lowest, highest = (np.array([reduce(curve.values[piece]) for piece in pieces]) for reduce in (np.min, np.max))
        axes.fill_between(steps, lowest, highest, color=color, alpha=0.2, linewidth=0)
        curve = Curve(steps, np.array([curve.values[piece].mean() for piece in pieces]))
    axes.plot(
        curve.steps, curve.values, color=color, linewidth=1.2, label=name, marker="" if len(curve.steps) > 1 else "o"
    )


def _spans_decades(values: Sequence[np.ndarray]) -> bool:
    finite = np.concatenate(values)
    finite = finite[np.isfinite(finite)]
    return len(finite) > 0 and finite.min() > 0 and finite.max() > 30 * finite.min()


def _for_a_page(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{_escaped(label)} over steps"', 1)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
