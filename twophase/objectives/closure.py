"""A closure, as torch's optimizers take it, as an objective."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import signature
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twophase.distributed import Processes, processes
from twophase.errors import InputError
from twophase.objective import Objective, Passes, Point, round_off
from twophase.objectives.mean_loss import Score
from twophase.parameters import ParameterVector
from twophase.precision import full_precision

Closure = Callable[[], Any]
INDEPENDENT = "one whose loss does not depend on the parameters"
ALLOWED = "one that returns their loss, after one backward pass or none"
# What a step must be given.
CLOSURE = (
    "a function without arguments that returns the loss (AMP's GradScaler and "
    "precision='16-mixed' hand on none: train in float32 or float64)"
)
# The part of the loss by which it should change, either way, to see whether a gradient is its own;
# what is tried where it changes by another part, since a gradient that is too small makes steps too
# long; and where it does not change. AMP begins with gradients 65,536 times as large.
CHANGE = 1e-3
SHORTER = 3e-3, 3e-5, 1e-5, 1e-6, 3e-7, 3e-8, 1e-8
LONGER = 3e-2, 0.1, 1.0, 3.0, 30.0, 1e2, 1e3, 3e3, 3e4, 1e5
# A gradient is not its loss's where two distances say the same factor, beyond this one.
WRONG_SLOPE = 1.5


def check_closure(closure: Any) -> Closure:
    """Return a closure; `InputError` for what cannot be called without arguments."""
    try:
        if callable(closure) and not isinstance(closure, type):
            signature(closure).bind()
            return closure
    except TypeError:
        pass
    except ValueError:  # a builtin, which tells nothing
        return closure
    raise InputError("closure", closure, CLOSURE)


def none() -> Tensor:
    """What stands for a closure while there is none."""
    raise AssertionError("no closure outside a step")


class Habits(NamedTuple):
    """What is known of a closure: whether it calls backward (None: not yet), or needs a graph."""

    calls_backward: bool | None = None
    needs_graph: bool = False


UNKNOWN = Habits()


class NoGraphError(InputError):
    """A derivative was asked for where there is no graph."""


class ClosureObjective:
    """An `Objective` from a torch closure, which returns the loss and may call backward.

    A closure that has called backward is known by the gradients that it leaves in the parameters:
    each evaluation then is a forward and a backward pass, and the loss may be detached. Else a
    value takes a forward pass only, without a graph where the closure needs none; one with
    derivatives by the inputs, as in physics-informed losses, does. Every evaluation leaves its `x`
    in the parameters; gradients that were there before are gone.

    What is known of the closure is in `habits`, for other closures that are alike.

    With several processes each has a closure of its own, over its share of the examples: the loss
    is the mean of theirs, and so are the gradients, whether DistributedDataParallel has averaged
    these already or not. `here` are these processes, None: those of now.

    Values and gradients are in `full_precision`, in which the closure is called; autocast that it
    opens itself counts, and is best left out: the losses of a line search hardly differ.

    Its resolution is that of the loss's dtype, at best that of the parameters'. `InputError` where
    the closure returns no real scalar, for a gradient neither calls backward nor returns a loss
    with a graph, or changes the parameters.
    """

    classes, count = False, 1  # no accuracy, and no mini-batches
    shared: tuple[Tensor, ...] = ()  # each process has data of its own

    def __init__(
        self,
        vector: ParameterVector,
        closure: Closure,
        habits: Habits = UNKNOWN,
        here: Processes | None = None,
    ):
        self.vector, self.closure, self.habits = vector, closure, habits
        self.processes = processes() if here is None else here
        self.passes = Passes()
        self.resolution = round_off(vector.dtype)
        self.unused = [False] * len(vector.parameters)  # without a gradient, at the last one

    @full_precision()
    def value(self, x: Tensor) -> float:
        """Value at `x` [P]: one forward pass, and a backward pass where the closure calls it."""
        if self.habits.calls_backward is not False:
            return self.value_and_gradient(x)[0]
        self.passes.forward += 1
        return self._mean(x, self._value(x))[0].item()

    def _value(self, x: Tensor) -> Tensor:
        if not self.habits.needs_graph:
            try:
                with torch.no_grad():
                    return self._loss(x)
            except NoGraphError:
                self.habits = self.habits._replace(needs_graph=True)
        return self._with_graph(x)

    @full_precision()
    def value_and_gradient(self, x: Tensor) -> tuple[float, Tensor]:
        """Value and gradient [P] at `x` [P]: one forward and backward pass."""
        return self.leave_gradients(x), self.vector.read_gradient()

    def leave_gradients(self, x: Tensor) -> float:
        """Value at `x` [P]; afterwards the gradients are in the parameters, None where none is.

        It is in the precision that torch is set to, as for a mini-batch.
        """
        self.passes.forward += 1
        loss = self._with_graph(x)
        if not self.habits.calls_backward:
            if not loss.requires_grad:
                found = "a loss without a graph"
                found += " (in inference mode)" if torch.is_inference_mode_enabled() else ""
                allowed = "a loss computed from the parameters, or a closure that calls backward"
                raise InputError("closure", found, allowed)
            self.passes.backward += 1
            with _explained():
                loss.backward(inputs=self.vector.parameters)
            if all(p.grad is None for p in self.vector.parameters):
                raise NoGraphError("closure", INDEPENDENT, ALLOWED)
        self.unused = [p.grad is None for p in self.vector.parameters]
        if self.processes.count > 1:
            used = ~torch.tensor(self.unused, device=x.device)
            loss, gradient, uses = self._mean(x, loss, self.vector.read_gradient(), used.double())
            self.unused = uses.eq(0).tolist()
            self.write_gradient(gradient)
        return loss.item()

    def _mean(self, x: Tensor, *parts: Tensor) -> list[Tensor]:
        """Tensors in the mean over the processes."""
        return [total / self.processes.count for total in self.processes.sums(parts, x)]

    def write_gradient(self, gradient: Tensor) -> None:
        """As `ParameterVector.write_gradient`, but None where the last one had none."""
        self.vector.write_gradient(gradient)
        for parameter, unused in zip(self.vector.parameters, self.unused, strict=True):
            if unused:
                parameter.grad = None

    def measure(self, x: Tensor) -> tuple[Point, None]:
        """The point at `x` [P], and no accuracy: one forward and backward pass."""
        return Point(x, *self.value_and_gradient(x), self.resolution), None

    def score(self, x: Tensor) -> Score:
        """The loss at `x` [P], and no accuracy: as `value`."""
        return Score(self.value(x), None)

    @torch.enable_grad()
    def _with_graph(self, x: Tensor) -> Tensor:
        """The loss, with its graph or after the closure's backward pass, which is noticed."""
        for parameter in self.vector.parameters:
            parameter.grad = None
        loss = self._loss(x)
        backward = any(p.grad is not None for p in self.vector.parameters)
        self.habits = self.habits._replace(calls_backward=backward)
        self.passes.backward += backward
        return loss

    def _loss(self, x: Tensor) -> Tensor:
        self.vector.write(x)
        with _explained():
            loss = self.closure()
        real = isinstance(loss, Tensor) and loss.is_floating_point() and not loss.is_sparse
        if not real or loss.numel() != 1:
            kind = type(loss).__name__
            if isinstance(loss, Tensor):
                kind = f"a tensor of shape {tuple(loss.shape)} and {loss.dtype}"
            raise InputError("closure", kind, "a closure that returns the loss as a real scalar")
        if not torch.equal(self.vector.read(), x) and bool(x.isfinite().all()):
            raise InputError("closure", "one that changes the parameters", "one that only reads")
        self.resolution = max(round_off(loss.dtype), round_off(self.vector.dtype))
        return loss.reshape(())


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what torch says of backward passes that cannot be into one clear line."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if "backward through the graph a second time" in text:
            found = "one that calls backward twice, or uses outputs computed before it was called"
            raise InputError("closure", found, ALLOWED) from error
        if "modified by an inplace operation" in text:
            found = "one that uses outputs computed before it was called"
            raise InputError("closure", found, "one that computes all of them anew") from error
        if "does not require grad" in text:
            raise NoGraphError("closure", INDEPENDENT, ALLOWED) from error
        raise


def check_slope(objective: Objective, point: Point) -> None:
    """Raise `InputError` where a closure leaves a multiple of its loss's gradient.

    The loss is looked at on both sides along the gradient, 2 values; where it does not change as
    it should, at more distances before anything is said. That finds a backward pass made twice, and
    gradients that were clipped or scaled, with which no search along slopes can work.
    """
    times = _times(objective, point, CHANGE)
    if times is not None and 1 / WRONG_SLOPE < times < WRONG_SLOPE:
        return
    for change in LONGER if times is None else SHORTER:
        before, times = times, _times(objective, point, change)
        if times is not None and 1 / WRONG_SLOPE < times < WRONG_SLOPE:
            return
        if times is None or before is None or abs(before / times - 1) >= 0.1:
            continue
        found = f"one that leaves {times:.3g} times the gradient of its loss"
        allowed = "one backward pass of it, no clipping and no scaling (as AMP does)"
        raise InputError("closure", found, allowed)


def _times(objective: Objective, point: Point, change: float) -> float | None:
    """The slope by the gradient over that by the losses; None where these do not differ clearly.

    They are taken where by the gradient they differ from the point's by `change` times the loss.
    """
    size, expected = point.gradient_norm, change * abs(point.value)
    if size == 0:
        return None
    step = (expected / size / size) * point.gradient
    rise = objective.value(point.x + step) - objective.value(point.x - step)
    clear = 100 * point.resolution * abs(point.value) < abs(rise) < float("inf")
    return 2 * expected / rise if clear else None
