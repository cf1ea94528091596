"""Line searches by values and slopes: strong Wolfe conditions, with the gradient handed on."""

import math
from dataclasses import dataclass
from operator import attrgetter

from twophase.errors import check_call, check_integer, check_number
from twophase.line_search.line import (
    CLEAR,
    CONTRACTION,
    Line,
    LineSearch,
    SearchResult,
    SearchStatus,
    Trial,
)
from twophase.settings import Settings

# A step that is too short grows at least by the first and at most by the second factor.
GROWTH = (1.1, 10.0)
# A trial between two others keeps this part of their distance away from both.
MARGIN = 0.05
# A parabola is trusted where its vertex is within the first factor of its trial; else the next
# trial goes there, by at most the second factor, and so many are tried.
TRUST, REACH, PARABOLAS = 10.0, 100.0, 5
# An interval that a trial leaves longer than this part of itself is halved next (Hager and Zhang,
# 2005, step L2).
SHRINKAGE = 0.66


@dataclass(frozen=True)
class StrongWolfe(Settings):
    """Bracket a point that satisfies the strong Wolfe conditions, then zoom in on one.

    With φ(t) = L(x + t d), the step t is accepted where φ(t) <= φ(0) + c1 · t φ'(0) and
    |φ'(t)| <= c2 · |φ'(0)| (Nocedal and Wright, Numerical Optimization, 2nd ed., algorithms 3.5 and
    3.6). Interpolation is by cubics through values and slopes, or by secants of the slopes
    where the losses are too close to compare; there the first condition holds up to the resolution
    of the loss, as in the approximate Wolfe conditions of Hager and Zhang (2005), so that the
    search goes on to smaller gradients where a search by losses must end. A trial is one forward
    and backward pass; the gradient at the accepted step is handed on.

    Failures are data, as for `GoldenSection`. With `evaluation limit`, where no trial satisfied
    both conditions within the bound, comes the lowest step below the start, if there is one.

    The defaults of 0 < c1 < 1/2 and c1 < c2 < 1 are those of Nocedal and Wright, section 3.1, for
    quasi-Newton directions; conjugate gradient wants a c2 of 0.1 to 0.4.
    """

    c1: float = 1e-4
    c2: float = 0.9
    max_evaluations: int = 30

    def __post_init__(self) -> None:
        check_number("c1", self.c1, above=0, below=0.5)
        check_number("c2", self.c2, above=self.c1, below=1)
        check_integer("max_evaluations", self.max_evaluations, 1)

    def __call__(self, line: Line, first_step: float) -> SearchResult:
        # the loss falls from the low end, and is too high or rises at the high end
        low = line.start
        high: Trial | None = None
        # a first step that no parameter can take would prove nothing
        step = max(first_step, line.smallest_step)
        width, promised, broken = math.inf, 0.0, 0.0
        while line.evaluations < self.max_evaluations:
            trial = line.gradient_trial(step)
            wanted = line.start.value + self.c1 * trial.step * line.slope
            decreases = trial.value <= wanted + line.resolution
            if decreases and abs(trial.slope) <= self.c2 * abs(line.slope):
                return line.result(trial, SearchStatus.MINIMUM)
            if not trial.value <= line.start.value + line.resolution:
                broken = max(broken, promised)
            promised, longer = 0.0, math.nan
            if decreases and trial.slope < 0 and trial.value <= low.value + line.resolution:
                low, longer = trial, _growth(low, trial)
            else:
                high = trial
            del trial  # its gradient, unless it is one of the two
            if high is None:
                step = longer
                continue
            low, high = _light(low, high)
            if low.step == 0 and high.value > line.start.value:
                step, promised = line.contraction(high)
            elif abs(high.step - low.step) > SHRINKAGE * width:
                step = (low.step + high.step) / 2
            else:
                step = _interpolation(line, low, high)
            width = abs(high.step - low.step)
            # nothing is left between the ends that arithmetic could tell from them
            if not low.step < step < high.step or width <= line.smallest_step:
                return _ended(line, low, high, broken)
        return _out_of_trials(line, low, high, broken)


@dataclass(frozen=True)
class ParabolaFirst(Settings):
    """Forward passes place the first step of another search, at the vertex of a parabola.

    The parabola goes through the start, its slope and a trial at the proposed first step (Hager and
    Zhang's QuadStep, 2005; Nocedal and Wright, equation 3.58). Where its vertex is not within ten
    times the trial, up or down, the next trial goes there, at most 100 times as far and at most
    five in all. Near a minimum, where lines are almost parabolas, `search` then accepts its first
    trial: most often 4 passes for a step as good as an exact one. Where losses are too close to
    compare, the step is left as it is.
    """

    search: LineSearch = StrongWolfe(c2=0.4)

    def __post_init__(self) -> None:
        check_call("search", self.search, "a line search: (line, first_step)")

    def __call__(self, line: Line, first_step: float) -> SearchResult:
        step = first_step
        for _ in range(PARABOLAS):
            if abs(line.slope) * step <= CLEAR * line.resolution:
                break
            trial = line.trial(step)
            part = 0.0 if math.isinf(trial.value) else line.vertex(trial)
            ratio = math.inf if part is None else part
            step *= min(max(ratio, 1 / REACH), REACH)
            if 1 / TRUST <= ratio <= TRUST:
                break
        return self.search(line, step)


def _light(low: Trial, high: Trial) -> tuple[Trial, Trial]:
    """Both, the one with the larger loss without its gradient, which is not handed on."""
    if low.value <= high.value:
        return low, high._replace(gradient=None)
    return low._replace(gradient=None), high


def _ended(line: Line, low: Trial, high: Trial, broken: float) -> SearchResult:
    """What an interval without a step left in it comes to."""
    best = min(low, high, key=attrgetter("value"))
    if line.start.value - best.value > line.resolution:
        return line.result(best, SearchStatus.MINIMUM)
    return line.failure(line.why_no_descent(high, broken))


def _out_of_trials(line: Line, low: Trial, high: Trial | None, broken: float) -> SearchResult:
    best = min(low, high or low, key=attrgetter("value"))
    if best.value < line.start.value:
        return line.result(best, SearchStatus.LIMIT)
    why = None if high is None else line.why_no_descent(high, broken)
    return line.failure(why if why and why is not SearchStatus.RESOLUTION else SearchStatus.LIMIT)


def _growth(before: Trial, low: Trial) -> float:
    """A longer step: where the secant of the last two slopes is zero, within bounds."""
    least, most = (low.step + (factor - 1) * (low.step - before.step) for factor in GROWTH)
    secant = _secant(before, low)
    return most if secant is None else min(max(secant, least), most)


def _interpolation(line: Line, low: Trial, high: Trial) -> float:
    """A step between two: the minimum of a cubic or a secant's zero, clear of both ends."""
    width = high.step - low.step
    if math.isinf(high.value):
        return low.step + CONTRACTION[0] * width
    if abs(high.value - low.value) > CLEAR * line.resolution:
        step = _cubic(low, high)
    else:
        step = _secant(low, high) if high.slope > 0 else None
    if step is None:
        return low.step + width / 2
    return min(max(step, low.step + MARGIN * width), high.step - MARGIN * width)


def _secant(a: Trial, b: Trial) -> float | None:
    """Where the line through two slopes is zero; None where it has no such minimum."""
    curvature = (b.slope - a.slope) / (b.step - a.step)
    return b.step - b.slope / curvature if 0 < curvature < math.inf else None


def _cubic(a: Trial, b: Trial) -> float | None:
    """The minimum of the cubic through two values and slopes (Nocedal and Wright, 3.59)."""
    width = b.step - a.step
    mean = a.slope + b.slope - 3 * (b.value - a.value) / width
    square = mean * mean - a.slope * b.slope
    if not 0 <= square < math.inf:
        return None
    root = math.sqrt(square)
    bottom = b.slope - a.slope + 2 * root
    return b.step - width * (b.slope + root - mean) / bottom if bottom != 0 else None
