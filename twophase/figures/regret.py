"""The regret of switch rules on many problems, as a map."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure

from twophase.figures.style import WIDE, readable_on

# in orders of magnitude of the loss; dark is large, which all readers can tell apart
BOUNDS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


def regret_map(table: pd.DataFrame, rules: Sequence[str], column: str = "regret") -> Figure:
    """A row for each case and a column for each rule, the median over the seeds in each cell.

    `table` is that of `twophase.experiments.regret.run`. Cases that were set aside are below a line
    of their own.
    """
    wide = table[table.rule.isin(rules)].pivot_table(column, "case", "rule", "median", sort=False)
    aside = table.drop_duplicates("case").set_index("case").held_out.loc[wide.index]
    wide, first = wide.loc[aside.sort_values(kind="stable").index, list(rules)], (~aside).sum()
    fig, ax = plt.subplots(figsize=(WIDE, 1.8 + 0.24 * len(wide)))
    colours = plt.get_cmap("YlGnBu", len(BOUNDS) + 1)
    norm = BoundaryNorm(BOUNDS, colours.N, extend="both")
    image = ax.imshow(wide.to_numpy(), cmap=colours, norm=norm, aspect="auto")
    for (row, place), value in np.ndenumerate(wide.to_numpy()):
        if np.isfinite(value):
            text = f"{value:.1f}" if abs(value) >= 0.05 else "0"
            colour = readable_on(colours(norm(value)))
            ax.text(place, row, text, ha="center", va="center", fontsize=10, color=colour)
    ax.set_xticks(range(len(rules)), rules, rotation=30, ha="right")
    ax.set_yticks(range(len(wide)), wide.index)
    if 0 < first < len(wide):
        ax.axhline(first - 0.5, color="black", linewidth=2)
    ax.tick_params(length=0)
    ax.grid(visible=False)
    bar = fig.colorbar(image, ax=ax, pad=0.01, ticks=BOUNDS)
    bar.set_label("regret (orders of magnitude)")
    bar.set_ticklabels([f"{bound:g}" for bound in BOUNDS])
    return fig
