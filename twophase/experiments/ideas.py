"""Ideas for the second phase beside a rival, from kept curves: who is lower, and who is sooner."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from twophase.experiments.statistics import by_group, ratio_of

START = ["problem", "swap_epoch", "seed"]


def pairs(
    curves: pd.DataFrame, rival: str, passes: float = np.inf, levels: Sequence[float] = ()
) -> pd.DataFrame:
    """Each run beside the rival's from the same start, a row for each.

    `curves` have columns of `START`, method, passes and loss. `ratio` is the loss after so many
    passes, or as many as both had, in parts of the rival's; and there is a column for each loss of
    `levels`, the passes to it in parts of the rival's, inf for a miss. Kept points can be far
    apart: between them ln L is a straight line over the passes.
    """
    rows = []
    for _, of in curves.groupby(START, sort=False):
        runs = dict(list(of.groupby("method", sort=False)))
        other = runs.pop(rival)
        for method, run in runs.items():
            end = min(passes, run.passes.max(), other.passes.max())
            row = {"method": method, "ratio": loss_after(run, end) / loss_after(other, end)}
            costs = {loss: passes_to(run, loss) / passes_to(other, loss) for loss in levels}
            rows.append({**row, **costs})
    return pd.DataFrame(rows)


def loss_after(run: pd.DataFrame, passes: float) -> float:
    """The lowest loss of a run so far, after so many passes."""
    return float(np.exp(np.interp(passes, run.passes, np.log(run.loss.cummin()))))


def passes_to(run: pd.DataFrame, loss: float) -> float:
    """The passes after which a run is first at or below a loss; inf if it never is."""
    lowest, spent = run.loss.cummin().to_numpy(), run.passes.to_numpy()
    there = np.flatnonzero(lowest <= loss)
    if not len(there):
        return np.inf
    around = slice(max(there[0] - 1, 0), there[0] + 1)
    return float(np.interp(-np.log(loss), -np.log(lowest[around]), spent[around]))


def standing(
    curves: pd.DataFrame, rival: str, passes: Sequence[int], levels: Sequence[float] = ()
) -> pd.DataFrame:
    """In how many runs each method is below the rival after so many passes and in the end.

    And the passes to each loss of `levels`, as `Ratio.text` of `pairs`.
    """
    ends = {f"below it after {n}": pairs(curves, rival, n) for n in passes}
    ends["in the end"] = pairs(curves, rival, levels=levels)

    def describe(of: pd.DataFrame) -> dict[str, str]:
        counts = {name: found.loc[of.index] for name, found in ends.items()}
        return {
            **{name: f"{(to.ratio < 1).sum()} of {len(to)}" for name, to in counts.items()},
            **{f"passes to {loss:g} / its": ratio_of(of[loss]).text for loss in levels},
        }

    return by_group(ends["in the end"], ["method"], describe)


def in_words(digits: pd.DataFrame, smooth: pd.DataFrame) -> str:
    """What the curves of `benchmarks/second_phase_ideas.py` say of each idea, in Markdown."""
    rival = "L-BFGS, preconditioned"
    on_digits, on_smooth = (
        standing(of, rival, [100], [1e-3] * (of is smooth)).set_index("method")
        for of in (digits, smooth)
    )
    soon, end, sooner = on_smooth.columns

    def runs(method: str, when: str) -> str:
        return f"{on_digits[when][method]} and {on_smooth[when][method]} runs"

    growing, fixed = "growing sample, by gradients", "growing sample, 20 iterations each"
    decay, mean = "L-BFGS after a decay of 30 epochs", "L-BFGS from mean of last 20 %"
    newton = pairs(digits, "Adam goes on", 200)
    newton = newton[newton.method.str.startswith("Gauss-Newton")]
    costs = "; ".join(
        f"{part}, {on_smooth[sooner][f'Gauss-Newton, {part}']}"
        for part in ("256 examples", "512 examples", "1024 examples", "all examples")
    )
    return (
        "In how many runs on the digits and on the regression is each idea lower than L-BFGS?\n\n"
        f"- **A growing sample**, by gradients: in {runs(growing, end)} in the end; with 20 "
        f"iterations on each part in {runs(fixed, end)}, and to 0.001 on the regression it takes "
        f"{on_smooth[sooner][fixed]} times the passes.\n"
        f"- **Gauss–Newton**: on the digits it is lower than Adam in {(newton.ratio < 1).sum()} of "
        f"{len(newton)} runs after 200 passes. To 0.001 on the regression its passes, in parts of "
        f"L-BFGS's, depend on how many examples give the curvature: {costs}.\n"
        f"- **Averaged weights**, the mean of the last 20 %: in {runs(mean, end)} in the end; to "
        f"0.001 on the regression at {on_smooth[sooner][mean]} times the passes.\n"
        f"- **A decay**: in {runs(decay, soon)} after 100 passes, of which it takes 90, and in "
        f"{runs(decay, end)} in the end."
    )
