"""The second phase against its definition: known minima, conjugacy, restarts, and how it ends."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from twophase.directions import (
    BETA_RULES,
    BroydenDirection,
    ConjugateDirection,
    LBFGSDirection,
    SelfScaledBFGSDirection,
)
from twophase.errors import InputError, NonFiniteError
from twophase.line_search import (
    GoldenSection,
    ParabolaFirst,
    SearchResult,
    SearchStatus,
    StrongWolfe,
)
from twophase.minimization import minimize
from twophase.objective import FunctionObjective, Passes, evaluate, round_off
from twophase.preconditioner import AdamMoments
from twophase.problems import toys
from twophase.second_phase import PATIENCE, SELF_SCALED_BFGS, Descent, Status, iterate

QUASI_NEWTON = {
    "SSBroyden": BroydenDirection(),
    "LBFGS": LBFGSDirection(),
    "SSBFGS": SelfScaledBFGSDirection(),
}
DESCENTS = {
    "default": SELF_SCALED_BFGS,
    "dense": Descent(BroydenDirection(), StrongWolfe(), AdamMoments()),
    "lbfgs": Descent(LBFGSDirection(), StrongWolfe(), AdamMoments()),
    "cg": Descent(ConjugateDirection("PR+"), ParabolaFirst()),
    "paper": Descent(ConjugateDirection("PR+"), GoldenSection()),
}
every_descent = pytest.mark.parametrize("descent", DESCENTS.values(), ids=DESCENTS)


# ---- known minima -------------------------------------------------------------------------------

GRID_DIRECTIONS = {
    **{beta: ConjugateDirection(beta) for beta in BETA_RULES},
    # without restarts these two jam on ten dimensions (Powell, 1977)
    "FR restarted": ConjugateDirection("FR", restart_every=40),
    "DY restarted": ConjugateDirection("DY", restart_every=40),
    **QUASI_NEWTON,
}
GRID_SEARCHES = {
    "golden": GoldenSection(),
    "golden-tight": GoldenSection(rtol=1e-8),
    "parabola": ParabolaFirst(),
    "wolfe": StrongWolfe(),
}


def beale(w):
    """A flat valley between steep walls (Moré, Garbow and Hillstrom 1981, problem 5)."""
    x, y = w[..., 0], w[..., 1]
    terms = ((1.5, y), (2.25, y.square()), (2.625, y**3))
    return sum((constant - x + x * power).square() for constant, power in terms)


PROBLEMS = {
    "quadratic": toys.Quadratic.log_spaced(20, 1e3, torch.Generator().manual_seed(0)),
    "rosenbrock-2": toys.rosenbrock(2),
    "rosenbrock-10": toys.rosenbrock(10),
    "beale": toys.Problem(beale, *torch.tensor([[1.0, 1.0], [3.0, 0.5]], dtype=torch.float64), 0.0),
}
OTHER_QUADRATICS = {
    f"quadratic {seed}": toys.Quadratic.log_spaced(20, 1e3, torch.Generator().manual_seed(seed))
    for seed in range(1, 5)
}
# The most iterations of a conjugate and of a quasi-Newton direction. Exact steps would end the
# quadratic in 20; elsewhere it is one and a half times what the slowest rule took, or more.
BOUNDS = {
    ("quadratic", "golden"): (400, 60),
    ("quadratic", "golden-tight"): (40, 40),
    ("quadratic", "parabola"): (500, 45),
    ("quadratic", "wolfe"): (400, 90),
    ("rosenbrock-2", "golden"): (250, 40),
    ("rosenbrock-2", "golden-tight"): (150, 30),
    ("rosenbrock-2", "parabola"): (500, 40),
    ("rosenbrock-2", "wolfe"): (600, 60),
    ("rosenbrock-10", "golden"): (800, 80),
    ("rosenbrock-10", "golden-tight"): (800, 80),
    ("rosenbrock-10", "parabola"): (800, 100),
    ("rosenbrock-10", "wolfe"): (700, 120),
    ("beale", "golden"): (150, 20),
    ("beale", "golden-tight"): (150, 20),
    ("beale", "parabola"): (110, 20),
    ("beale", "wolfe"): (120, 25),
}
CELLS = [
    *(
        (direction, search, problem)
        for direction, search, problem in product(GRID_DIRECTIONS, GRID_SEARCHES, PROBLEMS)
        if not (problem == "rosenbrock-10" and direction in ("FR", "DY"))
    ),
    *product(["FR", "PR+", "LBFGS", "SSBFGS"], ["golden-tight"], OTHER_QUADRATICS),
]


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "search", "problem"), CELLS)
def test_reaches_known_minima(direction, search, problem):
    """Every direction with every search, the paper's PR+ and FR with golden section among them."""
    function = (PROBLEMS | OTHER_QUADRATICS)[problem]
    quasi_newton = direction in QUASI_NEWTON
    line_search = GRID_SEARCHES[search]
    if search == "wolfe" and not quasi_newton:
        line_search = StrongWolfe(c2=0.1)  # Nocedal and Wright, section 3.1
    descent = Descent(GRID_DIRECTIONS[direction], line_search, tolerance_grad=2e-7)
    start = function.start if isinstance(function, toys.Problem) else torch.ones(20).double()
    bound = BOUNDS[problem.split(" ")[0], search][quasi_newton]
    result = minimize(FunctionObjective(function), start, iterations=bound, second=descent)
    assert result.status is Status.CONVERGED, f"not within {bound} iterations"
    torch.testing.assert_close(result.x, function.minimizer, rtol=0, atol=1e-6)


# ---- against the definition ---------------------------------------------------------------------


def quadratic(dimension, condition, seed=0):
    """A random symmetric positive definite matrix with log-spaced eigenvalues from 1."""
    generator = torch.Generator().manual_seed(seed)
    basis, _ = torch.linalg.qr(
        torch.randn(dimension, dimension, generator=generator, dtype=torch.float64)
    )
    eigenvalues = torch.logspace(0, torch.tensor(condition).log10(), dimension, dtype=torch.float64)
    return basis @ torch.diag(eigenvalues) @ basis.T


def objective_of(matrix):
    return FunctionObjective(lambda x: 0.5 * x @ matrix @ x)


class ExactSearch:
    """The minimum along a line of a quadratic, from its formula."""

    def __init__(self, matrix):
        self.matrix = matrix

    def __call__(self, line, first_step):
        step = -line.slope / (line.direction @ self.matrix @ line.direction).item()
        return SearchResult(step, line.trial(step).value, 1, SearchStatus.MINIMUM)


def trajectory(objective, x, descent, iterations):
    """Points and states of successive iterations."""
    point, state = evaluate(objective, x), None
    points, states = [point], []
    for _ in range(iterations):
        iteration = iterate(objective, point, state, descent)
        assert iteration.status is Status.MOVED
        point, state = evaluate(objective, iteration.x), iteration.state
        points.append(point)
        states.append(state)
    return points, states


@pytest.mark.parametrize("beta", BETA_RULES)
@settings(max_examples=40)
@given(dimension=st.integers(2, 8), seed=st.integers(0, 100))
def test_directions_are_conjugate_and_n_steps_suffice(beta, dimension, seed):
    matrix = quadratic(dimension, 20.0, seed)
    descent = Descent(ConjugateDirection(beta), ExactSearch(matrix))
    x = torch.ones(dimension, dtype=torch.float64)
    points, states = trajectory(objective_of(matrix), x, descent, dimension)
    directions = torch.stack([m.direction / m.direction.norm() for m in states])
    products = directions @ matrix @ directions.T
    off_diagonal = products - torch.diag(products.diagonal())
    # in units of the smallest eigenvalue: the last directions are short and noisy
    assert off_diagonal.abs().max() < 1e-4
    assert points[-1].gradient.norm() < 1e-9 * points[0].gradient.norm()


@pytest.mark.parametrize("beta", BETA_RULES)
def test_equals_linear_conjugate_gradient_with_exact_steps(beta):
    """Hestenes and Stiefel's recursion for A x = 0, whose iterates all β rules must reproduce."""
    matrix = quadratic(12, 100.0)
    x = torch.linspace(1, 2, 12, dtype=torch.float64)
    descent = Descent(ConjugateDirection(beta), ExactSearch(matrix))
    points, _ = trajectory(objective_of(matrix), x, descent, 8)
    residual = -matrix @ x
    direction = residual
    for point in points:
        torch.testing.assert_close(point.x, x, rtol=1e-9, atol=1e-12)
        step = (residual @ residual) / (direction @ matrix @ direction)
        x, before = x + step * direction, residual
        residual = residual - step * (matrix @ direction)
        direction = residual + (residual @ residual) / (before @ before) * direction


@every_descent
def test_what_an_iteration_leaves_is_what_it_did(descent):
    """The state's gradient is that before the step, its x and direction are those of the step."""
    matrix = quadratic(6, 50.0)
    x = torch.ones(6, dtype=torch.float64)
    points, states = trajectory(objective_of(matrix), x, descent, 5)
    for before, after, state in zip(points, points[1:], states, strict=False):
        assert torch.equal(state.gradient, before.gradient)
        assert torch.equal(state.x, after.x)
        torch.testing.assert_close(before.x + state.step * state.direction, after.x)
        assert state.slope == pytest.approx((state.direction @ before.gradient).item())


def test_restarts_every_n_iterations():
    matrix = quadratic(8, 100.0)
    descent = Descent(ConjugateDirection("FR", restart_every=3), ExactSearch(matrix))
    x = torch.ones(8, dtype=torch.float64)
    points, states = trajectory(objective_of(matrix), x, descent, 7)
    steepest = [
        torch.equal(state.direction, -point.gradient)
        for point, state in zip(points, states, strict=False)
    ]
    assert steepest == [True, False, False, True, False, False, True]


def test_restarts_where_the_direction_does_not_descend():
    objective = objective_of(quadratic(4, 10.0))
    point = evaluate(objective, torch.ones(4, dtype=torch.float64))
    state = iterate(objective, point, None).state
    uphill = state._replace(direction=1e6 * point.gradient, gradient=0.1 * point.gradient)
    descent = Descent(ConjugateDirection("FR"), ParabolaFirst())
    iteration = iterate(objective, point, uphill, descent)
    assert torch.equal(iteration.state.direction, -point.gradient)
    assert iteration.value < point.value


def test_a_failed_search_falls_back_on_steepest_descent():
    """A search that only accepts the steepest descent: the second attempt is along −g."""

    class Choosy:
        def __call__(self, line, first_step):
            if torch.equal(line.direction, -line.x):
                return GoldenSection()(line, first_step)
            return line.failure(SearchStatus.NO_DESCENT)

    objective = FunctionObjective(lambda x: 0.5 * x @ x)
    point = evaluate(objective, torch.ones(3, dtype=torch.float64))
    state = iterate(objective, point, None).state
    state = state._replace(direction=-torch.arange(1.0, 4).double(), age=1)
    descent = Descent(ConjugateDirection("FR"), Choosy())
    iteration = iterate(objective, point, state, descent)
    assert iteration.status is Status.MOVED
    assert torch.equal(iteration.state.direction, -point.gradient)


@every_descent
def test_stops_at_the_tolerance_of_the_gradient(descent):
    matrix = quadratic(10, 100.0)
    descent = replace(descent, tolerance_grad=1e-6)
    result = minimize(
        objective_of(matrix), torch.ones(10, dtype=torch.float64), iterations=300, second=descent
    )
    assert result.status is Status.CONVERGED
    assert 1e-9 < result.gradient_norm <= 1e-6
    assert (matrix @ result.x).norm() == pytest.approx(result.gradient_norm, rel=1e-6)


@pytest.mark.parametrize("direction", [ConjugateDirection("PR+"), SelfScaledBFGSDirection()])
def test_stops_where_the_arithmetic_ends(direction):
    """At 1 + x'Ax/2, float64 cannot see progress of the loss below |x| = 1e-8."""
    matrix = quadratic(5, 10.0)
    objective = FunctionObjective(lambda x: 1 + 0.5 * x @ matrix @ x)
    descent = Descent(direction, GoldenSection())
    result = minimize(objective, torch.ones(5, dtype=torch.float64), iterations=50, second=descent)
    assert result.status is Status.RESOLUTION
    assert result.x.norm() < 1e-6


@pytest.mark.parametrize("name", ["cg", "lbfgs", "default"])
def test_slopes_go_on_to_where_the_gradient_ends(name):
    """Beyond the losses' resolution, to that of the gradient, and no further."""
    matrix = quadratic(5, 10.0)
    minimum = torch.linspace(1, 2, 5, dtype=torch.float64)
    objective = FunctionObjective(lambda x: 1 + 0.5 * (x - minimum) @ matrix @ (x - minimum))
    result = minimize(
        objective, torch.zeros(5, dtype=torch.float64), iterations=200, second=DESCENTS[name]
    )
    assert result.status in (Status.RESOLUTION, Status.CONVERGED)
    assert (result.x - minimum).norm() < 1e-13


class Creeping:
    """A loss of one number, 1 at 0 and lower by `rate` a unit, with a gradient of its own."""

    def __init__(self, rate, shrinkage=1.0):
        self.rate, self.shrinkage = rate, shrinkage
        self.passes, self.resolution = Passes(), round_off(torch.float64)

    def value(self, x):
        return 1 - self.rate * x.item()

    def value_and_gradient(self, x):
        return self.value(x), -(self.shrinkage**x)


def unit_steps(line, first_step):
    """A search that always finds a step, to one unit further on."""
    length = line.direction.abs().item()
    return line.result(line.gradient_trial(1 / length), SearchStatus.MINIMUM)


@pytest.mark.parametrize("direction", [ConjugateDirection("PR+"), SelfScaledBFGSDirection()])
def test_ends_where_neither_loss_nor_gradient_goes_on(direction):
    """After 20 iterations without progress since the last, however small the single steps are."""
    descent = Descent(direction, unit_steps)
    x = torch.zeros(1, dtype=torch.float64)
    result = minimize(Creeping(rate=0.0), x, iterations=100, second=descent)
    assert (result.status, result.iterations) == (Status.RESOLUTION, PATIENCE + 1)
    # four steps are just seen in the loss, one is not
    slowly = Creeping(rate=round_off(torch.float64) / 3.5)
    assert minimize(slowly, x, iterations=100, second=descent).status is Status.BUDGET
    assert (
        minimize(Creeping(0.0, shrinkage=0.99), x, iterations=100, second=descent).status
        is Status.BUDGET
    )


@every_descent
def test_a_gradient_that_belongs_to_another_loss_is_no_descent(descent):
    class Liar(FunctionObjective):
        def value_and_gradient(self, x):
            value, gradient = super().value_and_gradient(x)
            return value, -gradient

    result = minimize(
        Liar(lambda x: x @ x + 1), torch.ones(3).double(), iterations=5, second=descent
    )
    assert (result.status, result.iterations) == (Status.NO_DESCENT, 0)


def test_a_loss_that_is_not_finite_is_an_error():
    with pytest.raises(NonFiniteError, match="loss: nan is not allowed"):
        minimize(FunctionObjective(lambda x: x.log().sum()), -torch.ones(1).double(), iterations=5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tolerance_grad", -1.0),
        ("direction", "FR"),
        ("direction", ConjugateDirection),
        ("line_search", 5),
        ("line_search", None),
        ("preconditioner", "diagonal"),
        ("preconditioner", None),
    ],
)
def test_parts_that_are_none_name_themselves(field, value):
    parts = {"direction": ConjugateDirection(), "line_search": GoldenSection()}
    with pytest.raises(InputError, match=f"^{field}: .* is not allowed") as error:
        Descent(**parts | {field: value})
    assert error.value.value is value


def test_the_bound_on_iterations_is_at_least_one():
    with pytest.raises(InputError, match="^iterations: 0 is not allowed"):
        minimize(objective_of(quadratic(2, 1.0)), torch.ones(2).double(), iterations=0)


@every_descent
def test_a_start_at_the_minimum_has_converged(descent):
    objective = objective_of(quadratic(3, 10.0))
    point = evaluate(objective, torch.zeros(3, dtype=torch.float64))
    iteration = iterate(objective, point, None, descent)
    assert (iteration.status, iteration.step, iteration.evaluations) == (Status.CONVERGED, 0, 0)
    assert "tolerance_grad" in iteration.message
    result = minimize(objective, point.x, iterations=9, second=descent)
    assert (result.status, result.loss, result.iterations) == (Status.CONVERGED, 0, 0)


@pytest.mark.parametrize("direction", [ConjugateDirection("PR+"), SelfScaledBFGSDirection()])
@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_there_is_no_absolute_floor(scale, direction):
    """The paper's rule has no scale: what solves a loss solves it times 1e±20."""
    matrix = scale * quadratic(10, 100.0)
    descent = Descent(direction, GoldenSection(rtol=1e-8))
    x = torch.ones(10, dtype=torch.float64)
    result = minimize(objective_of(matrix), x, iterations=60, second=descent)
    assert result.gradient_norm < 1e-8 * (matrix @ x).norm()


def test_a_smaller_restart_period_than_the_age_restarts_at_once():
    objective = objective_of(quadratic(4, 10.0))
    point = evaluate(objective, torch.ones(4, dtype=torch.float64))
    state = iterate(objective, point, None).state._replace(age=7)
    descent = Descent(ConjugateDirection("FR", restart_every=3), ParabolaFirst())
    iteration = iterate(objective, point, state, descent)
    assert torch.equal(iteration.state.direction, -point.gradient)


@every_descent
def test_a_step_beyond_the_dtype_is_no_crash(descent):
    """Unbounded below in float32: steps grow until the dtype cannot hold them."""
    objective = FunctionObjective(lambda x: -(x**2).sum())
    point, state = evaluate(objective, torch.ones(2)), None
    for _ in range(5):
        iteration = iterate(objective, point, state, descent)
        if iteration.status is not Status.MOVED:
            break
        point, state = evaluate(objective, iteration.x), iteration.state
    assert torch.isfinite(iteration.x).all()


@every_descent
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tiny_parameters_far_from_the_minimum_move(dtype, descent):
    """At |x| = 1e-8 and a minimum at 1e4 the first trial changes the loss by less than 1 ulp."""
    objective = FunctionObjective(lambda x: (x - 1e4).square().sum())
    result = minimize(objective, torch.full((2,), 1e-8, dtype=dtype), iterations=20, second=descent)
    assert (result.x - 1e4).abs().max() < 1


@every_descent
def test_one_large_parameter_does_not_hide_the_others(descent):
    """The bias is 1e4 and right; what is left to find is of size 1e-2."""
    generator = torch.Generator().manual_seed(0)
    inputs = 100 * torch.randn(200, 3, generator=generator, dtype=torch.float64)
    targets = inputs @ torch.tensor([0.01, -0.02, 0.03], dtype=torch.float64) + 1e4
    objective = FunctionObjective(lambda x: (inputs @ x[:3] + x[3] - targets).square().mean())
    start_at = torch.tensor([0.001, 0.001, 0.001, 1e4], dtype=torch.float64)
    result = minimize(objective, start_at, iterations=50, second=descent)
    assert result.loss < 1e-9 * objective.value(start_at)


@every_descent
def test_zero_residuals_end_at_the_resolution_not_in_a_blame(descent):
    """Rounding errors are those of the targets, not of the tiny loss: no wrong gradient here."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        inputs = torch.randn(100, 4, generator=generator).double()
        targets = inputs @ torch.randn(4, generator=generator).double()
        objective = FunctionObjective(lambda x, a=inputs, b=targets: (a @ x - b).square().mean())
        result = minimize(
            objective, torch.zeros(4, dtype=torch.float64), iterations=100, second=descent
        )
        assert result.status in (Status.RESOLUTION, Status.CONVERGED)
        assert result.loss < 1e-25


def test_a_search_without_evaluations_left_says_so():
    descent = Descent(ConjugateDirection(), GoldenSection(max_evaluations=3))
    objective = FunctionObjective(lambda x: (x - 1).square().sum() + 1)
    point = evaluate(objective, torch.zeros(1, dtype=torch.float64))
    state = iterate(objective, point, None).state._replace(step=1e12)
    iteration = iterate(objective, point, state, descent)
    assert iteration.status is Status.LIMIT
    assert "evaluations ran out" in iteration.message


def quartic(matrix):
    return lambda x: 0.5 * x @ matrix @ x + 0.1 * (x**4).sum()


@pytest.mark.parametrize("line_search", GRID_SEARCHES.values(), ids=GRID_SEARCHES)
@pytest.mark.parametrize("direction", GRID_DIRECTIONS.values(), ids=GRID_DIRECTIONS)
def test_preconditioning_is_a_change_of_variables(line_search, direction):
    """With x = S z, S² = M⁻¹: the iterates in x with M are those in z without."""

    def from_one_step(line, first_step):  # the first trial of all depends on the length of x
        return line_search(line, 0.05)

    function = quartic(quadratic(6, 20.0))
    inverse = torch.logspace(-2, 2, 6, dtype=torch.float64)
    root = inverse.sqrt()
    descent = Descent(direction, from_one_step)
    plain = FunctionObjective(function)
    scaled = FunctionObjective(lambda z: function(root * z))
    x = torch.ones(6, dtype=torch.float64)
    points, states = [evaluate(plain, x), evaluate(scaled, x / root)], [None, None]
    for _ in range(6):
        one = iterate(plain, points[0], states[0], descent, inverse)
        two = iterate(scaled, points[1], states[1], descent)
        torch.testing.assert_close(root * two.x, one.x, rtol=1e-6, atol=1e-9)
        assert two.evaluations == one.evaluations
        points = [one.point or evaluate(plain, one.x), two.point or evaluate(scaled, two.x)]
        states = [one.state, two.state]


# ---- what a device would wait for ---------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Counts in `count` the reads of numbers, for each of which a device would have to be done."""

    def __init__(self, monkeypatch):
        super().__init__()
        self.count, tolist = 0, torch.Tensor.tolist

        def counted(tensor):
            self.count += 1
            return tolist(tensor)

        monkeypatch.setattr(torch.Tensor, "tolist", counted)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.count += operation is torch.ops.aten._local_scalar_dense.default
        return operation(*args, **(kwargs or {}))


@every_descent
def test_an_iteration_waits_for_few_numbers(descent, monkeypatch):
    """Of each trial for its loss, and its slope where the search follows slopes.

    And five times more: for the norm of the gradient, what the direction is made of, its slope,
    the smallest step, and, on the CPU, the rows of a history.
    """
    objective = FunctionObjective(lambda x: ((1 + x.square()).log() * torch.arange(1, 9)).sum())
    point, state = evaluate(objective, torch.linspace(-1, 1, 8, dtype=torch.float64)), None
    slopes = not isinstance(descent.line_search, GoldenSection)
    for _ in range(4):
        waits, before = Waits(monkeypatch), objective.passes.forward
        with waits:
            done = iterate(objective, point, state, descent)
            point, state = done.point or evaluate(objective, done.x), done.state
        assert done.status is Status.MOVED
        evaluations = objective.passes.forward - before
        assert waits.count <= (1 + slopes) * evaluations + 5
