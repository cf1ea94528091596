"""What searches for a global minimum come to, in tables and words, and where local methods end."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from itertools import product
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch

from twophase.experiments import statistics
from twophase.experiments.global_search import (
    METHODS,
    NEAR,
    TOLERANCE,
    Meter,
    Method,
    MultiStart,
)
from twophase.problems import landscape
from twophase.problems.multimodal import PROBLEMS, Multimodal

# Where an end counts as still and its curvature as some: a straight path across the box, or a
# parabola over half of it, would change the loss by this part of the problem's scale.
RESOLVED = 1e-5


class End(StrEnum):
    """Where a local method has ended, by loss, gradient norm and least eigenvalue."""

    GLOBAL = "global minimum"
    SPURIOUS = "spurious minimum"
    SADDLE = "saddle point"
    FLAT = "flat"
    MOVING = "not converged"


# ---- evaluations to the global minimum ----------------------------------------------------------


def searches(
    problems: Iterable[str],
    sizes: Iterable[int],
    seeds: Iterable[int],
    evaluations: int,
    methods: Mapping[str, Method] = METHODS,
) -> Iterator[dict[str, Any]]:
    """A row for each problem, number of parameters, seed and installed method, as it is made.

    `evaluations` are those to the global minimum and `near` those to a loss near it, inf for a
    miss; `gap` is the lowest loss less the minimum, in parts of the problem's scale; the problem
    and the search are drawn by the same seed.
    """
    here = {name: method for name, method in methods.items() if method.installed}
    for name, size, seed in product(problems, sizes, seeds):
        problem = PROBLEMS[name](size, seed)
        for label, method in here.items():
            began = perf_counter()
            found = method.run(problem, seed, evaluations)
            reached = (
                found.reached(problem.minimum + at * problem.scale) for at in (TOLERANCE, NEAR)
            )
            yield {"problem": name, "parameters": size, "method": label, "seed": seed} | {
                **dict(zip(("evaluations", "near"), reached, strict=True)),
                "gap": (found.lowest[-1] - problem.minimum) / problem.scale,
                "spent": found.spent,
                "starts": found.starts,
                "seconds": perf_counter() - began,
            }


def in_order(table: pd.DataFrame) -> pd.DataFrame:
    """The rows in the order of the problems and of `METHODS`, whichever was run first."""
    rank = {name: place for place, name in enumerate([*PROBLEMS, *METHODS])}
    return table.sort_values(["problem", "method"], key=lambda of: of.map(rank), kind="stable")


def medians(table: pd.DataFrame, column: str = "evaluations") -> pd.DataFrame:
    """Median evaluations over the seeds by problem, method and parameters; inf: most missed."""
    by = ["problem", "method", "parameters"]
    return table.groupby(by, sort=False)[column].median().unstack("parameters")


def to_medians(table: pd.DataFrame, column: str = "evaluations") -> pd.DataFrame:
    """`medians` in words, with the misses."""

    def words(found: pd.Series) -> str:
        missed, median = int(np.isinf(found).sum()), found.median()
        if np.isinf(median):
            return f"{missed} of {len(found)} missed"
        return f"{median:,.0f}" + (f", {missed} of {len(found)} missed" if missed else "")

    by = ["problem", "method", "parameters"]
    found = table.groupby(by, sort=False)[column].agg(words).unstack("parameters")
    return found.fillna("–").rename(columns="n = {}".format)


def growth(table: pd.DataFrame) -> pd.DataFrame:
    """How the evaluations grow: the factor for a parameter more, by a line through log medians.

    `largest n found` is the largest number of parameters at which most seeds find the minimum,
    with the smaller ones at which most miss; `points` is how many numbers the line goes through.
    """
    rows = []
    for (problem, method), found in medians(table).iterrows():
        there = found[np.isfinite(found)]
        factor = np.nan
        if len(there) > 1:
            sizes = there.index.to_numpy(dtype=float)
            factor = float(np.exp(np.polyfit(sizes, np.log(there.to_numpy()), 1)[0]))
        most = str(there.index.max()) if len(there) else "none"
        gaps = [n for n in found.index[np.isinf(found)] if n < there.index.max()]
        most += f", not {' and '.join(map(str, gaps))}" if gaps else ""
        row = {"problem": problem, "method": method, "largest n found": most}
        rows.append(row | {"points": len(there), "factor": factor})
    return pd.DataFrame(rows)


def verdict(table: pd.DataFrame, own: str = "Adam, then second phase") -> str:
    """In words, for each problem: who needs the fewest evaluations, and where two phases are."""
    return "\n".join(
        f"- {_verdict(name, of, own)}" for name, of in table.groupby("problem", sort=False)
    )


def _verdict(name: str, table: pd.DataFrame, own: str) -> str:
    # where all methods were run
    found = medians(table).droplevel("problem").dropna(axis="columns")
    sizes = found.columns[np.isfinite(found).any()]
    if sizes.empty:
        return f"**{name}**: nobody finds the global minimum on most seeds."
    at = found[sizes.max()].sort_values()
    text = f"**{name}**, {_parameters(sizes.max())}: the fewest evaluations: "
    text += f"{at.index[0]}, {at.iloc[0]:,.0f}"
    if np.isfinite(at[own]):
        text += f"; {own} is number {at.index.get_loc(own) + 1} of {len(at)} with {at[own]:,.0f}, "
        text += f"{at[own] / at.iloc[0]:.1f} times as many."
    else:
        text += f"; {own} misses it on most seeds."
    missed, beyond = at.index[np.isinf(at)], found.columns[found.columns > sizes.max()]
    text += f" Missed on most seeds: {', '.join(missed)}." if len(missed) else ""
    return text + (f" With {_parameters(beyond.max())} all miss." if len(beyond) else "")


def _parameters(count: int) -> str:
    return f"{count} parameter" + "s" * int(count != 1)


def left_out(methods: Mapping[str, Method] = METHODS) -> str:
    """A sentence that names the methods whose package is not installed; empty if there is none."""
    names = ", ".join(name for name, method in methods.items() if not method.installed)
    return f"Left out, because its package is not installed here: {names}." if names else ""


# ---- where local methods end --------------------------------------------------------------------


def census(
    problems: Iterable[str],
    sizes: Iterable[int],
    seeds: Iterable[int],
    starts: int,
    methods: Mapping[str, MultiStart],
    passes: int = 2000,
) -> Iterator[pd.DataFrame]:
    """Where local methods end from the same random starts: a table for each case, see `ends`.

    Those of twophase have so many `passes` a start, to converge.
    """
    for name, size, seed in product(problems, sizes, seeds):
        problem = PROBLEMS[name](size, seed)
        points = problem.starts(np.random.default_rng(seed), starts)
        for label, method in methods.items():
            patient = replace(method, passes=passes) if hasattr(method, "passes") else method
            with np.errstate(all="ignore"):
                last = [patient.descend(Meter(problem), point) for point in points]
            case = {"problem": name, "parameters": size, "method": label, "seed": seed}
            yield ends(problem, np.array(last)).assign(**case)


def ends(problem: Multimodal, points: np.ndarray) -> pd.DataFrame:
    """What loss, gradient and Hessian say of points [k, n], a row for each.

    `gap` is the loss less the minimum, in parts of the scale s; with the width B of the box, an end
    at which B ‖g‖ > 1e-5 s is not converged; one with B² |λ| / 8 ≤ 1e-5 s is flat, a valley or a
    plateau; else the sign of the least eigenvalue λ decides. A gap of at most 1e-6 comes first.
    """
    at = torch.from_numpy(points)
    losses, gradients = _with_gradients(problem, at)
    least = landscape.least_eigenvalue(problem.loss, at).numpy()
    gap = (losses - problem.minimum) / problem.scale
    size, width = np.linalg.norm(gradients, axis=1), 2 * problem.half_width
    bend = least * width**2 / 8 / problem.scale
    kinds = np.select(
        [gap <= TOLERANCE, size * width > RESOLVED * problem.scale, np.abs(bend) <= RESOLVED],
        [End.GLOBAL.value, End.MOVING.value, End.FLAT.value],
        np.where(bend > 0, End.SPURIOUS.value, End.SADDLE.value),
    )
    outside = (np.abs(points) > problem.half_width).any(axis=1)
    columns = {"gap": gap, "gradient_norm": size, "least_eigenvalue": least, "end": kinds}
    return pd.DataFrame(columns | {"outside": outside})


def _with_gradients(problem: Multimodal, points: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    leaf = points.clone().requires_grad_()
    losses = problem.loss(leaf)
    (gradients,) = torch.autograd.grad(losses.sum(), leaf)
    return losses.detach().numpy(), gradients.numpy()


def levels(gaps: Sequence[float]) -> int:
    """Different losses among ends, whose gaps are further apart than 1e-5 of the scale."""
    return int(1 + (np.diff(np.sort(gaps)) > RESOLVED).sum()) if len(gaps) else 0


def shares(
    table: pd.DataFrame, by: Sequence[str] = ("problem", "parameters", "method")
) -> pd.DataFrame:
    """The share of each kind of end, by columns of a `census`."""
    found = pd.DataFrame({end.value: table.end == end for end in End})
    return found.groupby([table[name] for name in by], sort=False).mean()


def to_shares(table: pd.DataFrame) -> pd.DataFrame:
    """`shares` as counts, with what the spurious minima are: losses a draw, and how high."""

    def describe(of: pd.DataFrame) -> dict[str, Any]:
        spurious = of[of.end == End.SPURIOUS]
        each = spurious.groupby("seed").gap.agg(levels)
        lowest, highest = spurious.gap.min(), spurious.gap.max()
        return {
            **{end.value: _count(of, end) for end in End},
            "spurious losses a draw": f"{each.mean():.1f}" if len(each) else "–",
            "their gap": f"{lowest:.1e} to {highest:.1e}" if len(each) else "–",
            "outside the box": f"{of.outside.sum()} of {len(of)}",
        }

    return statistics.by_group(table, ["problem", "parameters", "method"], describe)


def claim(table: pd.DataFrame) -> str:
    """In words, for each problem: whether spurious minima and saddle points were not met."""
    return "\n".join(f"- {_claim(name, of)}" for name, of in table.groupby("problem", sort=False))


def _claim(name: str, table: pd.DataFrame) -> str:
    count = {end: int((table.end == end).sum()) for end in End}
    met = [
        f"{count[end]} {words}"
        for end, words in {
            End.SPURIOUS: "in spurious minima",
            End.SADDLE: "at saddle points",
        }.items()
        if count[end]
    ]
    verdict = f"**they are met**: {' and '.join(met)}" if met else "**none are met**"
    text = f"**{name}**, {len(table):,} ends: {verdict}; "
    text += f"{count[End.GLOBAL]} in the global minimum, "
    text += f"{count[End.FLAT]} where it is flat, {count[End.MOVING]} not converged."
    if count[End.SPURIOUS]:
        by = [(size, _count(of, End.SPURIOUS)) for size, of in table.groupby("parameters")]
        text += f" Spurious minima: {by[0][1]} ends with {_parameters(by[0][0])}, "
        text += f"{by[-1][1]} with {by[-1][0]}."
    return text


def _count(table: pd.DataFrame, end: End) -> str:
    return f"{(table.end == end).sum()} of {len(table)}"


def drawn(table: pd.DataFrame) -> str:
    """How little a `census` rests on, in words."""
    case = table.groupby(["problem", "parameters", "seed", "method"]).size()
    draws, starts = table.seed.nunique(), int(case.max())
    return (
        f"These ends are of {draws} drawn problem{'s' * (draws > 1)} for each family and number of "
        f"parameters, with {starts} starts each, the same for all {table.method.nunique()} "
        "methods: another draw can have other shares."
    )
