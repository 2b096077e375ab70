"""Pictures: sizes and budgets as bars, a trade-off as a curve with its proven band. Needs matplotlib when called.

Figures are made without pyplot, so that neither the caller's backend nor the list of open figures changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import RequestError

BEFORE, AFTER, BAND, OVER = "#c7cdd6", "#2a6fb0", "#9cc3e6", "#b03a2e"
WIDTH, ROW = 8.0, 0.24  # of a figure and of a bar, in inches
STEPS = 300  # at which a band is drawn


def drawn_plan(
    title: str,
    sizes: Mapping[str, tuple[int, int]],
    costs: Mapping[str, tuple[float, float, float | None]],
    path: str | Path | None = None,
) -> Any:
    """Sizes before and after, a pair of bars for each layer; below, what stays of each cost, and its budget."""
    height = 1.6 + ROW * (len(sizes) + 2 * len(costs))
    figure = _figure((WIDTH, min(height, 150.0)))
    upper, lower = figure.subplots(2, 1, height_ratios=[max(2, len(sizes)), 1 + 2 * len(costs)])
    places = list(range(len(sizes)))
    upper.barh(places, [a for a, _ in sizes.values()], color=BEFORE, label="before", height=0.8)
    upper.barh(places, [b for _, b in sizes.values()], color=AFTER, label="after", height=0.45)
    _named(upper, places, list(sizes))
    upper.set_title("sizes")
    upper.set_xlabel("units")
    upper.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2, fontsize="small")
    known = {name: c for name, c in costs.items() if c[0]}
    places = list(range(len(known)))
    lower.barh(places, [100 * after / before for before, after, _ in known.values()], color=AFTER, height=0.45)
    for k, (before, _, budget) in enumerate(known.values()):
        if budget is not None:
            x = 100 * budget / before
            lower.plot([x, x], [k - 0.4, k + 0.4], color=OVER, label=None if k else "budget")
    lower.axvline(100, color=BEFORE, linewidth=1)
    _named(lower, places, list(known))
    lower.set_title("kept")
    lower.set_xlabel("% of what it was; a line marks the budget")
    figure.suptitle(title)
    return _done(figure, path)


def drawn_frontier(
    title: str,
    resource: str,
    points: Sequence[tuple[float, float]],
    band: Callable[[float], tuple[float, float]],
    now: tuple[float, float],
    path: str | Path | None = None,
) -> Any:
    """Objectives over costs as steps, the proven band above them, and the present model.

    `band` gives, for a budget, the value that is reached within it and the bound that is proven for it.
    """
    figure = _figure((WIDTH, 5.0))
    axes = figure.subplots()
    left, right = points[0][0], max(points[-1][0], now[0])
    even = [left + (right - left) * k / STEPS for k in range(STEPS + 1)]
    ends = [x for cost, _ in points for x in (cost, max(left, cost - (right - left) * 1e-6))]  # both sides of a step
    xs = sorted({*even, *ends})
    low, high = zip(*map(band, xs), strict=True)
    axes.fill_between(xs, low, high, color=BAND, alpha=0.6, label="proven: no plan lies above the band")
    axes.step([x for x, _ in points], [y for _, y in points], where="post", color=AFTER)
    axes.plot([x for x, _ in points], [y for _, y in points], "o", color=AFTER, label="plans")
    axes.plot([now[0]], [now[1]], "*", color=OVER, markersize=12, label="the model as it is")
    axes.set_xlabel(resource)
    axes.set_ylabel("value of what stays")
    axes.set_title(title)
    axes.legend(loc="lower right", fontsize="small")
    return _done(figure, path)


def _figure(size: tuple[float, float]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise RequestError("plots need matplotlib, which is not installed: pip install solvemut[plot]") from None
    return Figure(figsize=size, layout="constrained")


def _named(axes: Any, places: list[int], names: list[str]) -> None:
    """Bars by name, the first on top. A dollar is no formula here."""
    axes.set_yticks(places, [name.replace("$", r"\$") for name in names], fontsize="small")
    axes.set_ylim(len(names) - 0.4, -0.6)


def _done(figure: Any, path: str | Path | None) -> Any:
    if path is None:
        return figure
    figure.savefig(path)
    return None
