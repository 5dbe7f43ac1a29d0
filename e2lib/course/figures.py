"""Figures that only lessons use: accuracy by group, how far guidance comes, the papers' claims."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from e2lib.figures import COLOURS, NAMES


def show_ways(table: pd.DataFrame) -> Figure:
    """How far guidance comes at each depth: bars from 0 to the ceiling, to the guided EPG, and to the baseline's.

    table: one row per depth, with columns "baseline EPG", "EPG", "ceiling" (per cent), "seconds" (of a guided epoch).
    """
    figure, (axis, time) = plt.subplots(1, 2, figsize=(8.5, 3.4), width_ratios=[2, 1])
    names, y = table.index.tolist(), np.arange(len(table))[::-1]
    axis.barh(y, table.ceiling, color="0.8", label="ceiling")
    axis.barh(y, table.EPG, color=COLOURS[2], label="guided", hatch="//", edgecolor="white", linewidth=0)
    axis.barh(y, table["baseline EPG"], color=COLOURS[0], label="baseline")
    axis.set(yticks=y, yticklabels=names, xlabel="EPG on test images, per cent", title="How far guidance comes")
    axis.legend(loc="lower right", frameon=True, reverse=True)
    time.barh(y, table.seconds, color="0.6")
    time.set(yticks=y, yticklabels=names, xlabel="seconds", title="Time of a guided epoch")
    return figure


def show_groups(table: pd.DataFrame, groups: Sequence[str], unseen: Sequence[str] = ()) -> Figure:
    """Accuracy by group: one cluster of bars per network.

    Args:
        table: one row per network, indexed by its name. Columns: the groups, and "accuracy" over all images, per cent.
        groups: the columns that become bars. The number of the lowest bar in a cluster stands at its foot.
        unseen: the groups that training does not show. Their bars are hatched.
    """
    wide = min(max(6.5, 1.65 * len(table)), 11)  # inches; a wider figure is made smaller on a page
    figure, axis = plt.subplots(figsize=(wide, 4))
    x, width = np.arange(len(table)), 0.8 / len(groups)
    for k, group in enumerate(groups):
        place, hatch = x + (k - (len(groups) - 1) / 2) * width, "///" if group in unseen else None
        label = group + ", not in training" * (group in unseen)
        axis.bar(place, table[group], width, color=COLOURS[k], label=label, hatch=hatch, edgecolor="white", linewidth=0)
    worst = table[list(groups)].to_numpy()
    for i, k in enumerate(worst.argmin(1)):
        place, style = i + (k - (len(groups) - 1) / 2) * width, {"facecolor": "white", "edgecolor": "none", "pad": 1}
        axis.text(place, 3, f"{worst[i, k]:.0f}", ha="center", bbox=style)
    axis.hlines(table.accuracy, x - 0.4, x + 0.4, color="black", linewidth=2, label="all images")
    parts = [name.partition(",") for name in table.index]
    names = [NAMES.get(first, first) + comma + rest.replace(" %", "\xa0%") for first, comma, rest in parts]
    axis.set(xticks=x, ylim=(0, 104), ylabel="accuracy, per cent")
    axis.set_xticklabels([textwrap.fill(name, 10) for name in names])
    figure.legend(loc="outside upper center", ncol=3 if wide > 8 else 2)
    return figure


def show_claims(table: pd.DataFrame) -> Figure:
    """What `claims.judge` returns: one row per claim and data set, with our mean, its interval, and others' numbers.

    The x axis counts points above the claim's bound. It is linear up to 5 on either side and logarithmic beyond. A †
    marks numbers of several revisions. Claims of one theme have it as title. Up to six rows are large.
    """
    size, wide = (17, 36) if len(table) <= 6 else (14, 54)
    with plt.rc_context(dict.fromkeys(("font.size", "xtick.labelsize", "ytick.labelsize"), size)):
        return _claims(table, size, wide)


def _claims(table: pd.DataFrame, size: float, wide: int) -> Figure:
    """size: of letters, points; wide: letters of a name in a line."""
    data = table.data + [" †" * bool(several) for several in table.revisions]
    names = data.where(table.claim.duplicated(), table.claim + "\u00a0· " + data)  # the dot stays with the claim
    names = names.map(lambda name: textwrap.fill(name, wide))
    heights = names.str.count("\n").to_numpy() + 1.3  # of rows, in lines
    ends = heights.cumsum()
    figure, axis = plt.subplots(figsize=(12, 1.2 + size / 60 * ends[-1]))
    for y, end, row, first in zip(ends - heights / 2, ends, table.itertuples(), ~table.claim.duplicated(), strict=True):
        colour = {"holds": COLOURS[2], "does not hold": COLOURS[3]}.get(row.here, "0.4")
        low, high, mean = (value - row.above for value in (row.low, row.high, row.ours))
        axis.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="butt", alpha=0.6)
        axis.plot(mean, y, "o", color=colour)
        if first:
            said = [value - row.above for value in row.reproductions.values()]
            axis.plot(said, [y] * len(said), "x", color="0.2")
            if pd.notna(row.paper_says):
                axis.plot(row.paper_says - row.above, y, "kD", markersize=6, markerfacecolor="none")
            axis.axhline(end - 2 * (end - y), color="0.85", linewidth=0.8)
            axis.text(1.01, y, f"{row.verdict} ({row.held})", transform=axis.get_yaxis_transform(), va="center")
    axis.axvline(0, color="black", linestyle=":")
    axis.set_xscale("symlog", linthresh=5)
    ticks = [-50, -10, -2, 0, 2, 10, 50]
    axis.set(xticks=ticks, yticks=ends - heights / 2, ylim=(ends[-1], 0))
    axis.set_xticklabels([str(tick).replace("-", "−") for tick in ticks])
    axis.set_yticklabels(names)
    axis.set_xlabel("points above the bound")
    axis.set_title("● ours, 95 % interval over seeds   ◇ paper   × reproductions", fontsize=size)
    if table.theme.nunique() == 1:
        figure.suptitle(table.theme.iloc[0], fontsize=size, fontweight="bold")
    return figure
