"""The errors a user can cause, each one clear line: the field, the value and what is allowed."""

import math
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from inspect import signature
from re import sub
from typing import Any


class TwoPhaseError(Exception):
    """Base of every error that the command line turns into one line and exit code 2.

    Where it ended a `fit`, `records` are those of the epochs that were run.
    """

    records: tuple[Any, ...] = ()


class InputError(TwoPhaseError, ValueError):
    """A field holds a value that is not allowed.

    >>> print(InputError("epochs", 0, "a whole number of at least 1"))
    epochs: 0 is not allowed; use a whole number of at least 1
    """

    def __init__(self, field: str, value: object, allowed: str):
        shown = sub(r"\s*\n\s*", " ", repr(value))
        shown = shown if len(shown) <= 400 else f"{shown[:400]}…"
        super().__init__(f"{field}: {shown} is not allowed; use {allowed}")
        self.field, self.value, self.allowed = field, value, allowed

    def __reduce__(self) -> tuple[Any, ...]:
        # the value may be what cannot be copied or sent
        return _copied, (type(self), str(self), vars(self) | {"value": repr(self.value)})


def _copied(kind: type[InputError], text: str, known: dict[str, Any]) -> InputError:
    error = kind.__new__(kind, text)
    error.args = (text,)
    vars(error).update(known)
    return error


class DataError(TwoPhaseError):
    """A data file is missing, truncated or altered; the message names the file and the mend."""


class ProcessError(TwoPhaseError):
    """Processes that share a training have lost each other, or do not hold the same numbers."""


class NonFiniteError(TwoPhaseError, ArithmeticError):
    """A loss or gradient is not-a-number or infinite where training cannot go on."""


@contextmanager
def loading() -> Iterator[None]:
    """While a state is loaded: `InputError` for whatever a damaged one provokes."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        raise InputError("state", f"damaged ({error!r})", "one that is whole") from error


def check_choice(field: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; raise `InputError` (with a near match) if not."""
    choices = list(choices)
    if value in choices:
        return value
    near = get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise InputError(field, value, f"one of {', '.join(choices)}{hint}")


def check_type(field: str, value: object, kind: type, also: str = "") -> None:
    """Raise `InputError` unless `value` is of a class; `also` says what else is allowed."""
    if not isinstance(value, kind):
        raise InputError(field, value, f"{kind.__name__}(...){also}")


def check_call(field: str, value: object, allowed: str) -> None:
    """Raise `InputError` unless `value` can be called with the arguments that `allowed` lists.

    `allowed` is a text such as "a line search: (line, first_step)".
    """
    if callable(value) and not isinstance(value, type):
        try:
            signature(value).bind(*allowed.partition("(")[2].split(","))
        except TypeError:
            pass
        except ValueError:  # a builtin, which tells nothing
            return
        else:
            return
    raise InputError(field, value, allowed)


def check_integer(field: str, value: object, minimum: int, maximum: int = 2**63 - 1) -> int:
    """Return `value` if it is a whole number of at least `minimum`; raise `InputError` if not.

    No generator, tensor or file could hold a number beyond 64 bits.
    """
    allowed = f"a whole number of at least {minimum}"
    if isinstance(value, int) and not isinstance(value, bool):
        if minimum <= value <= maximum:
            return value
        allowed += f" and at most {maximum}" * (value > maximum)
    raise InputError(field, value, allowed + _as("int", value))


def _as(kind: str, value: object) -> str:
    """What a number of numpy, which JSON does not take, is to become."""
    return f", as {kind}({value!r})" if type(value).__module__ == "numpy" else ""


def check_number(
    field: str,
    value: object,
    above: float = -math.inf,
    below: float = math.inf,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> float:
    """Return an int or float as float if it is finite and in range; raise `InputError` if not."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        inside = above < value < below and minimum <= value <= maximum
        # a whole number too large for a float is as good as infinite
        if inside and abs(value) <= sys.float_info.max:
            return float(value)
    limits = {"above": above, "of at least": minimum, "below": below, "of at most": maximum}
    bounds = [f"{word} {limit:g}" for word, limit in limits.items() if math.isfinite(limit)]
    allowed = f"a finite number {' and '.join(bounds)}".strip()
    raise InputError(field, value, allowed + _as("float", value))
