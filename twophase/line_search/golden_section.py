"""Golden section: the paper's line search, by losses alone."""

import math
from dataclasses import dataclass

from twophase.errors import check_integer, check_number
from twophase.line_search.line import CLEAR, Line, SearchResult, SearchStatus, Trial
from twophase.settings import Settings

GOLDEN_RATIO = (1 + math.sqrt(5)) / 2
GOLDEN_FRACTION = 2 - GOLDEN_RATIO
# Numerical Recipes' GLIMIT: a parabola may extend a bracket by this factor at most.
MAX_EXTRAPOLATION = 100.0
# Losses whose relative difference is below the resolution to this power (3e-5 in float64) may place
# a minimum as three points of a parabola. 2/3 would balance noise against a general function's
# cubic term; near a minimum lines are almost parabolas, and a wider one costs fewer trials.
PARABOLA_POWER = 0.3


@dataclass(frozen=True)
class GoldenSection(Settings):
    """Bracket a minimum along the line, then narrow the bracket by golden section.

    The bracket is three steps a < b < c with L(b) < L(a), L(b) <= L(c); it grows by the golden
    ratio or a limited parabola, and shrinks by parabolas when the first step is too long. Golden
    section narrows it until c − a <= 2 · rtol · b (Press et al., Numerical Recipes in C, 2nd
    ed., sections 10.0 and 10.1; the paper's section 4 uses it in the second phase). Where the
    losses would get too close to compare before that, the vertex of the parabola through the
    bracket is the last trial. A trial is one forward pass. The step never raises the loss.

    Failures are data: status `no descent` (the loss rises however short the step), `not finite`,
    `resolution` (what the step gains is below the resolution of the arithmetic), or `evaluation
    limit` before any lower loss was found; after that the best step is returned with it.

    The default `rtol`, in (0, 1), takes about 14 forward passes a search, and the paper names none;
    a tight one, 1e-8, comes close to an exact search, and needs half of `max_evaluations` (>= 3).
    """

    rtol: float = 1e-2
    max_evaluations: int = 100

    def __post_init__(self) -> None:
        check_number("rtol", self.rtol, above=0, below=1)
        check_integer("max_evaluations", self.max_evaluations, 3)

    def __call__(self, line: Line, first_step: float) -> SearchResult:
        trial = self._descend(line, first_step)
        if isinstance(trial, SearchResult):
            return trial
        result = self._section(line, *self._bracket(line, *trial))
        if line.start.value - result.value <= line.resolution:
            return line.failure(SearchStatus.RESOLUTION)
        return result

    def _descend(self, line: Line, step: float) -> tuple[Trial, Trial | None] | SearchResult:
        """A trial below the start, and the shortest longer one that was not (None: no such)."""
        # a first trial whose change nobody could see would prove nothing
        step = max(step, CLEAR * line.resolution / abs(line.slope))
        above, trial = None, line.trial(step)
        promised = broken = 0.0
        while not trial.value < line.start.value:
            broken = max(broken, promised)
            lost = abs(line.slope) * trial.step <= line.resolution
            if lost or trial.step <= line.smallest_step:
                return line.failure(line.why_no_descent(trial, broken))
            if line.evaluations >= self.max_evaluations:
                infinite = math.isinf(trial.value)
                return line.failure(SearchStatus.NOT_FINITE if infinite else SearchStatus.LIMIT)
            step, promised = line.contraction(trial)
            above, trial = trial, line.trial(step)
        return trial, above

    def _bracket(
        self, line: Line, middle: Trial, right: Trial | None
    ) -> tuple[Trial, Trial, Trial]:
        """Three trials around a minimum, or as far as the bound on evaluations lets it look."""
        left = line.start
        if right is None:
            right = line.trial(middle.step * (1 + GOLDEN_RATIO))
        while right.value < middle.value and line.evaluations < self.max_evaluations:
            step = _extrapolation(left, middle, right)
            left, middle, right = middle, right, line.trial(step)
        return left, middle, right

    def _section(self, line: Line, left: Trial, middle: Trial, right: Trial) -> SearchResult:
        """Narrow the bracket; the middle is the lowest trial throughout."""
        if right.value < middle.value:
            return line.result(right, SearchStatus.LIMIT)
        while right.step - left.step > 2 * self.rtol * middle.step:
            if self._beyond_comparison(line, left, middle, right):
                middle = self._last_trial(line, left, middle, right)
                break
            if line.evaluations >= self.max_evaluations:
                return line.result(middle, SearchStatus.LIMIT)
            if right.step - middle.step > middle.step - left.step:
                trial = line.trial(middle.step + GOLDEN_FRACTION * (right.step - middle.step))
                if trial.value < middle.value:
                    left, middle = middle, trial
                else:
                    right = trial
            else:
                trial = line.trial(middle.step - GOLDEN_FRACTION * (middle.step - left.step))
                if trial.value < middle.value:
                    middle, right = trial, middle
                else:
                    left = trial
        return line.result(middle, SearchStatus.MINIMUM)

    def _beyond_comparison(self, line: Line, left: Trial, middle: Trial, right: Trial) -> bool:
        """Whether noise would decide the last comparisons on the way to the tolerance."""
        noise = line.relative_resolution
        level = abs(middle.value)
        difference = max(left.value, right.value) - middle.value
        # losses differ by the square of the width of the bracket
        narrowing = 2 * self.rtol * middle.step / (right.step - left.step)
        resolved = narrowing**2 * difference > CLEAR * noise * level
        return not resolved and difference <= noise**PARABOLA_POWER * level

    def _last_trial(self, line: Line, left: Trial, middle: Trial, right: Trial) -> Trial:
        """The vertex of the parabola through the bracket, unless its loss is clearly higher."""
        vertex = _vertex(left, middle, right)
        if vertex is None or line.evaluations >= self.max_evaluations:
            return middle
        trial = line.trial(vertex)
        return trial if trial.value <= middle.value + line.resolution else middle


def _extrapolation(left: Trial, middle: Trial, right: Trial) -> float:
    """Longer step: the vertex of the parabola through three descending trials, within bounds."""
    width = right.step - middle.step
    shortest = right.step + GOLDEN_RATIO * width
    vertex = _vertex(left, middle, right)
    if vertex is None:
        return shortest
    return min(max(vertex, shortest), right.step + MAX_EXTRAPOLATION * width)


def _vertex(left: Trial, middle: Trial, right: Trial) -> float | None:
    """Step at the minimum of the parabola through three trials; None if it has no minimum."""
    slope_left = (middle.value - left.value) / (middle.step - left.step)
    slope_right = (right.value - middle.value) / (right.step - middle.step)
    curvature = (slope_right - slope_left) / (right.step - left.step)
    if not 0 < curvature < math.inf:
        return None
    return (middle.step + right.step) / 2 - slope_right / (2 * curvature)
