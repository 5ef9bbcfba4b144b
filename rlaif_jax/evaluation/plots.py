"""Plots of a report as SVG text. Without pyplot and global state; matplotlib is imported on first use."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlaif_jax.evaluation.scores import Figure
from rlaif_jax.evaluation.text import number
from rlaif_jax.language.fonts import cjk_font, has_cjk

COLOURS = ("#8d949e", "#3f83c9", "#e0722f", "#3e9b63", "#9566b8", "#c2a028")
INK = "#7d838c"  # readable on white and on black, since the background is transparent
HELD_OUT = "eval/"  # prefix of the names of held-out curves
MAX_POINTS = 400  # longer curves are thinned by averaging neighbours


@dataclass(frozen=True)
class Curve:
    """One line of a learning curve. steps and values have the same length; None and NaN are gaps."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    ylabel: str = ""
    xlabel: str = "step"

    def __post_init__(self) -> None:
        if len(self.steps) != len(self.values):
            raise ValueError(f"curve {self.name!r}: {len(self.steps)} steps but {len(self.values)} values")

    @property
    def points(self) -> list[tuple[float, float]]:
        """(step, value) with NaN for a gap."""
        pairs = zip(self.steps, self.values, strict=True)
        return [(float(s), float(v) if v is not None and math.isfinite(v) else math.nan) for s, v in pairs]


@dataclass(frozen=True)
class Plot:
    """An SVG document with a transparent background, and its alternative text."""

    svg: str
    alt: str


def plot_label(text: str, fallback: str, font: Path | None) -> str:
    """The text, or the ASCII fallback if no font has its characters."""
    return fallback if has_cjk(text) and font is None else text


def bar_plots(names: Sequence[str], panels: Mapping[str, Sequence[Figure]], percent: Sequence[bool]) -> dict[str, Plot]:
    """Bars with 95 % error bars: one plot per metric (title -> a figure per system), one colour per system.

    percent: for each panel, whether its values are shares (axis from 0 to 100 %). A missing value has no bar.
    """
    font = cjk_font() if has_cjk("".join((*names, *panels))) else None
    labels = [plot_label(name, f"system {i + 1}", font) for i, name in enumerate(names)]
    found = {}
    for i, (title, values) in enumerate(panels.items()):
        canvas, ax = _canvas((3.6, 2.7))
        scale = 100.0 if percent[i] else 1.0
        for x, figure in enumerate(values):
            _bar(ax, x, figure, scale, COLOURS[x % len(COLOURS)])
        if percent[i]:
            ax.set_ylim(0, 112)
            ax.set_yticks([0, 25, 50, 75, 100], ["0 %", "25", "50", "75", "100"])
        else:
            ax.margins(y=0.2)
            ax.axhline(0, color=INK, linewidth=0.8)
        ax.set_xlim(-0.6, len(names) - 0.4)
        crowded = sum(len(name) for name in labels) > 30
        ax.set_xticks(range(len(names)), labels, **({"rotation": 30, "ha": "right"} if crowded else {}))
        ax.tick_params(axis="x", length=0)
        _title(ax, plot_label(title, f"metric {i + 1}", font))
        _dress([ax], font)
        found[title] = Plot(_svg(canvas), f"Bars with 95 % intervals: {title}")
    return found


def _bar(ax: Any, x: int, figure: Figure, scale: float, colour: str) -> None:
    if figure.value is None:
        ax.annotate("n/a", (x, 0), ha="center", va="bottom", color=INK, fontsize=8)
        return
    height, top = figure.value * scale, figure.value * scale
    ax.bar(x, height, width=0.62, color=colour)
    if figure.has_interval:
        top = max(top, figure.high * scale)
        errors = [[max(0.0, height - figure.low * scale)], [max(0.0, figure.high * scale - height)]]
        ax.errorbar(x, height, yerr=errors, color=INK, capsize=3, linewidth=1.2)
    text = f"{height:.1f}" if scale == 100 else number(height, False)
    ax.annotate(text, (x, max(top, 0.0)), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=8, color=INK)


def curve_plots(stage: str, curves: Sequence[Curve]) -> dict[str, Plot]:
    """One plot per metric; a curve "eval/x" is drawn in the plot of "x". Curves without a value are left out.

    Long curves are drawn faintly, with their running mean on top.
    """
    drawn = [c for c in curves if any(math.isfinite(v) for _, v in c.points)]
    panels: dict[str, list[Curve]] = {}
    for curve in drawn:
        panels.setdefault(curve.name.removeprefix(HELD_OUT), []).append(curve)
    font = cjk_font() if has_cjk("".join(c.name + c.ylabel for c in drawn)) else None
    found = {}
    for i, (name, lines) in enumerate(panels.items()):
        canvas, ax = _canvas((5.2, 2.9))
        for curve in lines:
            _line(ax, curve)
        ax.margins(x=0.03, y=0.08)
        ax.grid(axis="y", color=INK, alpha=0.2, linewidth=0.6)
        ylabel = next((c.ylabel for c in lines if c.ylabel), "")
        if ylabel:
            ax.set_ylabel(plot_label(ylabel, "", font), parse_math=False)
        ax.set_xlabel(lines[0].xlabel)
        if lines[0].xlabel != "step":
            ax.xaxis.get_major_locator().set_params(integer=True)
        if len(lines) > 1:
            ax.legend(fontsize=8, frameon=False, labelcolor=INK)
        _title(ax, plot_label(name, f"curve {i + 1}", font))
        _dress([ax], font)
        found[name] = Plot(_svg(canvas), f"Learning curve of {stage}: {name}")
    return found


def _line(ax: Any, curve: Curve) -> None:
    held_out = curve.name.startswith(HELD_OUT)
    colour, label = (COLOURS[2], "held out") if held_out else (COLOURS[1], "training")
    points = thinned(curve.points)
    steps, values = [s for s, _ in points], [v for _, v in points]
    marker = "." if len(points) <= 20 else None
    if len(points) <= 40:
        ax.plot(steps, values, color=colour, linewidth=1.3, marker=marker, label=label)
        return
    ax.plot(steps, values, color=colour, alpha=0.3, linewidth=1.0)
    ax.plot(steps, running_mean(values, len(points) // 20), color=colour, linewidth=1.6, label=label)


def thinned(points: Sequence[tuple[float, float]], limit: int = MAX_POINTS) -> list[tuple[float, float]]:
    """At most `limit` points: means of neighbours, without gaps. Fewer points are returned unchanged."""
    size = -(-len(points) // limit)
    if size <= 1:
        return list(points)
    blocks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(s for s, _ in b) / len(b), _mean([v for _, v in b])) for b in blocks]


def running_mean(values: Sequence[float], half: int) -> list[float]:
    """Centred mean over 2 * half + 1 values, fewer at the ends. Gaps stay gaps."""
    near = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [_mean(part) if math.isfinite(v) else math.nan for v, part in zip(values, near, strict=True)]


def _mean(values: Sequence[float]) -> float:
    known = [v for v in values if math.isfinite(v)]
    return sum(known) / len(known) if known else math.nan


def _canvas(size: tuple[float, float]) -> tuple[Any, Any]:
    """A Figure of this size in inches, and its axes."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=size, layout="constrained")
    canvas.patch.set_alpha(0)
    return canvas, canvas.add_subplot()


def _title(ax: Any, text: str) -> None:
    ax.set_title(text, fontsize=9.5, parse_math=False)


def _dress(axes: Sequence[Any], font: Path | None) -> None:
    """Sets one colour and removes the box; sets the CJK font, if any, for CJK texts."""
    from matplotlib.text import Text

    for ax in axes:
        ax.patch.set_alpha(0)
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(INK)
        ax.tick_params(labelsize=8, color=INK, labelcolor=INK)
        ax.xaxis.label.set(color=INK, fontsize=8)
        ax.yaxis.label.set(color=INK, fontsize=8)
        ax.title.set_color(INK)
        for text in ax.findobj(Text):
            text.set_parse_math(False)  # a "$" in a name does not begin a formula
            if font is not None and has_cjk(text.get_text()):
                text.set_fontproperties(_sized(font, text.get_fontsize()))


def _sized(font: Path, size: float) -> Any:
    from matplotlib.font_manager import FontProperties

    return FontProperties(fname=str(font), size=size)


def _svg(canvas: Any) -> str:
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    FigureCanvasSVG(canvas)
    buffer = io.StringIO()
    canvas.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
