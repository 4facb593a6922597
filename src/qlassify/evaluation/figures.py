"""The report's curves as inline SVG: loss, rate, gradient and throughput over training, and reliability.

matplotlib draws the geometry, the page decides the colours. Each figure is drawn in three placeholder colours that are
replaced by the page's CSS variables afterwards, so one file follows the reader's light or dark mode; the alternatives,
two renderings or a white box on a dark page, are heavier or uglier. Letters stay text (``svg.fonttype: none``): they
can be selected, and take the page's font.

Only what has numeric axes is drawn here. Whatever carries names (the per-class bars, the confusion matrix) is an HTML
table in the template, where the browser shapes emoji and right-to-left script and escapes what needs escaping.

The functions use ``matplotlib.figure.Figure`` and no pyplot, and a private, restored copy of the settings. The same
numbers give the same bytes: no date is written, and ids come from a fixed salt.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from qlassify.evaluation.calibration_error import ReliabilityBin

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, ACCENT = "#0a0b01", "#0a0b02", "#0a0b03"
_CSS_VARIABLES = {INK: "var(--ink)", MUTED: "var(--muted)", ACCENT: "var(--accent)"}

# In points, which become the user units of the SVG: a 360 pixel phone shows 9-point letters at about 8 pixels.
_WIDTH, _HEIGHT = 400, 250
_SMALL = (200, 140)

# Fewer records than this are shown as they are.
_MIN_STEPS_TO_AVERAGE = 40

_SETTINGS: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qlassify",
    "font.size": 9.5,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def loss_figure(history: Sequence[Mapping[str, float]], evaluations: Sequence[Mapping[str, float]]) -> str | None:
    """Training loss per step, its running mean, and the evaluation loss, as SVG; None when there is nothing to draw.

    Args:
        history: step events; those with ``step`` and a finite ``loss`` are drawn.
        evaluations: evaluation events, read the same way.
    """
    training, evaluated = _points(history), _points(evaluations)
    if not training and not evaluated:
        return None

    def draw(axes: Axes) -> None:
        if training:
            steps, losses = zip(*training, strict=True)
            averaged = len(losses) >= _MIN_STEPS_TO_AVERAGE
            raw = {"alpha": 0.45, "label": "_nolegend_"} if averaged else {"label": "training"}
            axes.plot(steps, losses, color=MUTED, linewidth=0.8 if averaged else 1.2, **raw)
            if averaged:
                window = max(2, len(losses) // 20)
                label = f"training, mean of {window} records"
                axes.plot(steps, running_mean(losses, window), color=INK, linewidth=1.2, label=label)
        if evaluated:
            steps, losses = zip(*evaluated, strict=True)
            axes.plot(steps, losses, color=ACCENT, linewidth=1.4, marker="o", markersize=4, label="evaluation")
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.set_ylim(bottom=0.0)
        axes.legend(loc="best")

    return _draw("loss", "Loss over the steps of training", draw)


def reliability_figure(bins: Sequence[ReliabilityBin], before: Sequence[ReliabilityBin] | None = None) -> str | None:
    """Stated confidence against the share that came true, as SVG; None when every bin is empty.

    The dashed diagonal is perfect calibration. A bin's circle grows with its rows, so that three rows far
    from the diagonal do not look like a finding.

    Args:
        bins: of the probabilities as they are.
        before: of the probabilities before they were calibrated, drawn in grey behind; one curve when None.
    """
    after = _filled(bins)
    if not after:
        return None
    earlier = [] if before is None else _filled(before)
    curves = [*([(earlier, MUTED, "as trained")] if earlier else []), (after, ACCENT, "calibrated")]
    largest = max(count for points, _, _ in curves for _, _, count in points)

    def draw(axes: Axes) -> None:
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)))
        for points, colour, name in curves:
            confidence, accuracy, _ = zip(*points, strict=True)
            axes.plot(confidence, accuracy, color=colour, linewidth=1.0, alpha=0.6)
            areas = [8 + 160 * count / largest for _, _, count in points]
            axes.scatter(confidence, accuracy, s=areas, color=colour, alpha=0.75, linewidths=0, clip_on=False)
            if earlier:
                axes.plot([], [], color=colour, linewidth=1.4, marker="o", markersize=4, label=name)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_xlabel("stated probability")
        axes.set_ylabel("share that came true")
        if earlier:
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, borderaxespad=0.2)

    return _draw("reliability", "Reliability: stated probability against the share that came true", draw)


def training_figures(history: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """Small curves over the steps of training as SVG: learning rate, gradient norm, throughput.

    A curve is drawn if the log has two values of it or more and not all of them are zero: a probe has no learning rate,
    and a log that was thinned out to one line has no curve. Throughput is in tokens, or in rows where no tokens were
    counted.

    Args:
        history: step events: ``step`` and any of ``learning_rate``, ``grad_norm``, ``rows``, ``tokens``, ``seconds``.
    """
    tokens = _rates(history, "tokens")
    counted = any(rate for _, rate in tokens)
    curves = (
        ("learning-rate", "learning rate", _points(history, "learning_rate")),
        ("gradient-norm", "gradient norm before clipping", _points(history, "grad_norm")),
        ("throughput", "tokens per second", tokens)
        if counted
        else ("throughput", "rows per second", _rates(history, "rows")),
    )
    return tuple(
        _small(name, label, points)
        for name, label, points in curves
        if len(points) > 1 and any(value for _, value in points)
    )


def _small(name: str, label: str, points: Sequence[tuple[float, float]]) -> str:
    steps, values = zip(*points, strict=True)
    averaged = name != "learning-rate" and len(values) >= _MIN_STEPS_TO_AVERAGE

    def draw(axes: Axes) -> None:
        axes.plot(steps, values, color=MUTED if averaged else INK, linewidth=0.8, alpha=0.45 if averaged else 1.0)
        if averaged:
            axes.plot(steps, running_mean(values, max(2, len(values) // 20)), color=INK, linewidth=1.2)
        axes.set_title(label, fontsize=9.5, loc="left", color=INK)
        axes.set_xlabel("step")
        axes.set_ylim(bottom=0.0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        axes.locator_params(axis="both", nbins=4)

    return _draw(name, f"{label[0].upper()}{label[1:]}, over the steps of training", draw, _SMALL)


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of up to ``window`` values around each, fewer at the ends.

    Centred, because a mean of the past alone lies beside the curve that it is meant to smooth.
    """
    sums = list(accumulate(values, initial=0.0))
    means = []
    for index in range(len(values)):
        start = max(0, index - window // 2)
        stop = min(len(values), index + (window + 1) // 2)
        means.append((sums[stop] - sums[start]) / (stop - start))
    return means


def _filled(bins: Sequence[ReliabilityBin]) -> list[tuple[float, float, int]]:
    """(confidence, accuracy, rows) of the bins that have rows."""
    return [(b.confidence, b.accuracy, b.count) for b in bins if b.confidence is not None and b.accuracy is not None]


def _points(events: Sequence[Mapping[str, float]], key: str = "loss") -> list[tuple[float, float]]:
    points = ((event.get("step"), event.get(key)) for event in events)
    return [(step, value) for step, value in points if step is not None and value is not None and math.isfinite(value)]


def _rates(events: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    """``key`` per second of each step."""
    return [
        (event["step"], event[key] / event["seconds"])
        for event in events
        if event.get("seconds") and event.get(key) is not None
    ]


def _draw(name: str, label: str, draw: Any, size: tuple[int, int] = (_WIDTH, _HEIGHT)) -> str:
    """Run ``draw`` on fresh axes of ``size`` points and return the page-ready SVG element."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        # Start from the library's own settings, not from a matplotlibrc that happens to lie on this machine.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), layout="constrained")
        draw(figure.subplots())
        return _for_page(_save(figure), name, label, size)


def _save(figure: Figure) -> str:
    buffer = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return buffer.getvalue()


def _for_page(svg: str, name: str, label: str, size: tuple[int, int]) -> str:
    """Turn a stand-alone SVG file into an element of the page: its colours and font, ids of its own, an aria label."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # a rule for `*` would reach beyond the figure
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    # Two figures of one page must not share ids; the remaining ones are markers and clipping paths.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"font-family: [^;\"]*;? ?", "", svg)
    for placeholder, variable in _CSS_VARIABLES.items():
        svg = svg.replace(placeholder, variable)
    opening = f'<svg class="figure" role="img" aria-label="{label}" viewBox="0 0 {size[0]} {size[1]}">'
    return re.sub(r"^<svg[^>]*>", opening, svg, count=1).strip()
