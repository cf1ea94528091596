"""What `benchmarks/physics_networks.py` left: errors of physics-informed networks over the cost."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from twophase.errors import DataError
from twophase.experiments.statistics import ratio_of

OURS, PEER = "twophase, SSBroyden", "ssbroyden-optimistix"
PUBLISHED = "published: ENGD, a GPU"
LEVELS = (1e-4, 1e-5, 1e-6, 1e-7)
ENDS = ["here", "peer"]


class PhysicsResults(NamedTuple):
    """A row per moment, problem, method and seed: passes, seconds, loss and error.

    `published` has the seconds to errors and the lowest of others' results, by problem.
    """

    curves: pd.DataFrame
    published: dict[str, dict[str, float]]


def load(folder: Path) -> PhysicsResults:
    """The results in a folder; `DataError` where there are none."""
    try:
        curves = pd.read_csv(folder / "curves.csv")
        facts = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        return PhysicsResults(curves, facts["published"])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder}: no results of physics_networks.py ({error})") from error


def to_errors(
    results: PhysicsResults, seed: int = 0, levels: Sequence[float] = LEVELS
) -> pd.DataFrame:
    """Seconds and passes until the error is at a level, and the last error, as texts."""
    curves, rows = results.curves, []
    for problem, of in curves[curves.seed == seed].groupby("problem", sort=False):
        for method, path in of.groupby("method", sort=False):
            cells = [_reached(path[path.error <= level]) for level in levels]
            end = path.iloc[-1]
            last = f"{end.error:.1e} ({end.seconds:.0f} s, {end.passes:,.0f})"
            rows.append((problem, method, *cells, last))
        if known := results.published.get(str(problem)):
            cells = [f"{known[f'{x:g}']:g} s" if f"{x:g}" in known else "–" for x in levels]
            rows.append((problem, PUBLISHED, *cells, f"{known['lowest']:.1e} (1000 s)"))
    columns = ["problem", "method", *(f"{level:.0e}" for level in levels), "at the end"]
    return pd.DataFrame(rows, columns=columns)


def _reached(rows: pd.DataFrame) -> str:
    return f"{rows.seconds.iloc[0]:.2g} s, {rows.passes.iloc[0]:,.0f}" if len(rows) else "–"


def winners(results: PhysicsResults, seed: int = 0) -> pd.DataFrame:
    """Who has the lowest error after the same time: a row for each problem.

    Some methods had more seconds than others. All are cut at the time of the method that had the
    least there. Columns: problem, `seconds`, the best method with its error, and the next one.
    """
    rows = []
    for problem, of in results.curves[results.curves.seed == seed].groupby("problem", sort=False):
        shared = of.groupby("method").seconds.max().min()
        lowest = of[of.seconds <= shared].groupby("method").error.min().nsmallest(2)
        places = [part for name, error in lowest.items() for part in (name, f"{error:.1e}")]
        rows.append((problem, f"{shared:.0f}", *places, *["–"] * (4 - len(places))))
    return pd.DataFrame(
        rows, columns=["problem", "seconds", "lowest", "error", "next", "its error"]
    )


def in_shared_seconds(curves: pd.DataFrame) -> tuple[float, str]:
    """The seconds of the method that had the least, and the lowest loss of each by then, in words.

    `curves` have columns method, seconds and loss.
    """
    shared = curves.groupby("method").seconds.max().min()
    lowest = curves[curves.seconds <= shared].groupby("method").loss.min().sort_values()
    return float(shared), "; ".join(f"{loss:.1e}, {name}" for name, loss in lowest.items())


def at_equal_passes(results: PhysicsResults, ours: str = OURS, peer: str = PEER) -> pd.DataFrame:
    """Lowest losses of two methods within the passes that both made, a row per problem and seed."""
    rows = []
    for (problem, seed), of in results.curves.groupby(["problem", "seed"], sort=False):
        paths = [of[of.method == method] for method in (ours, peer)]
        if all(len(path) for path in paths):
            passes = min(path.passes.max() for path in paths)
            here, there = (path[path.passes <= passes].loss.min() for path in paths)
            rows.append((problem, seed, passes, here, there, here / there))
    return pd.DataFrame(rows, columns=["problem", "seed", "passes", *ENDS, "ratio"])


def beside_the_peer(pairs: pd.DataFrame) -> pd.DataFrame:
    """`at_equal_passes` by problem and in all: medians over the seeds, with the range of ratios."""
    whole = pairs.assign(problem=f"all {len(pairs)} runs")
    rows = []
    for problem, of in pd.concat([pairs, whole]).groupby("problem", sort=False):
        ratio, middle = ratio_of(list(of.ratio)), [f"{of[name].median():.1e}" for name in ENDS]
        spread = f"{ratio.median:.2g} ({ratio.low:.2g} to {ratio.high:.2g})"
        rows.append((problem, f"{of.passes.median():,.0f}", *middle, spread))
    return pd.DataFrame(
        rows, columns=["problem", "passes", "loss here", "loss of the peer", "ratio"]
    )
