"""The library's default second phase: chosen by the loss's structure and size."""

from dataclasses import dataclass

from torch import Tensor

from twophase.directions import BroydenDirection, State
from twophase.errors import InputError, check_number
from twophase.least_squares import (
    LeastSquares,
    LevenbergMarquardt,
    NoJacobianError,
    squares_of,
)
from twophase.objective import Objective, Point
from twophase.preconditioner import AdamMoments, Preconditioner, check_preconditioner
from twophase.second_phase import SELF_SCALED_BFGS, Descent, Iteration, Minimizer, Prepared

# Parameters up to which a matrix [P, P] is kept: 72 MB, as quick as a gradient on 1,000 examples.
DENSE_PARAMETERS = 3000
# Residuals for a point up to which a Jacobian, a backward pass for each, is worth its passes. With
# the 10 classes of digits it was not: 50 iterations of `SELF_SCALED_BFGS` did more than the 13 of
# Levenberg–Marquardt that took as many passes.
MOST_RESIDUALS = 4


@dataclass(frozen=True)
class Automatic(Minimizer):
    """The second phase that suits a loss, by the first of these that can be used:

    1. `LevenbergMarquardt` for a sum of squares, up to 4 for each point, whose linear systems are
       solved within a few seconds each (see `LeastSquares.direct`).
    2. `BroydenDirection`, a matrix [P, P], for at most 3,000 parameters.
    3. `SelfScaledBFGSDirection`, a limited memory, else.

    The latter two with `StrongWolfe` and the `preconditioner` of a phase after Adam, by default its
    second moments after mini-batches. Such a choice is the same at each iteration and in each
    process, as it looks at sizes only. `tolerance_grad` as for `Descent`.
    """

    preconditioner: Preconditioner = AdamMoments()
    tolerance_grad: float = 0.0

    def __post_init__(self) -> None:
        check_preconditioner(self.preconditioner)
        check_number("tolerance_grad", self.tolerance_grad, minimum=0)

    def prepare(self, objective: Objective, size: int) -> Prepared:
        """The choice, the objective as it takes it, and the reason."""
        squares = squares_of(objective)
        kind = "no sum of squares" if squares is None else _why_not(squares, objective)
        if squares is not None and not kind:
            rows, columns = squares.size
            reason = f"a sum of {rows:,} squares, of {columns:,} parameters"
            return Prepared(LevenbergMarquardt(tolerance_grad=self.tolerance_grad), squares, reason)
        rule, search = SELF_SCALED_BFGS.direction, SELF_SCALED_BFGS.line_search
        rule = BroydenDirection() if size <= DENSE_PARAMETERS else rule
        chosen = Descent(rule, search, self.preconditioner, self.tolerance_grad)
        return Prepared(chosen, objective, f"{kind}, of {size:,} parameters")

    def iterate(
        self, objective: Objective, point: Point, state: State | None, inverse: Tensor | None = None
    ) -> Iteration:
        minimizer, prepared, _ = self.prepare(objective, len(point.x))
        return minimizer.iterate(prepared, point, state, inverse)


def _why_not(squares: LeastSquares, objective: Objective) -> str:
    """Why a sum of squares is minimised without its Jacobian; empty where it is made.

    Examples of a `FullBatch` may depend on each other; points of terms that a user gave may not.
    """
    try:
        if not squares.direct or squares.columns > MOST_RESIDUALS:
            return "a sum of squares with costly Jacobians"
        squares.check_jacobian()
    except NoJacobianError as error:
        return f"a sum of squares, {error.value}"
    except InputError:
        if squares is objective:
            raise
        return "a sum of squares of examples that depend on each other"
    return ""


DEFAULT = Automatic()
