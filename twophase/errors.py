"""The errors a user can cause, each one clear line: the field, the value and what is allowed."""

import math
import sys
from collections.abc import Iterable
from difflib import get_close_matches


class TwoPhaseError(Exception):
    """Base of every error that the command line turns into one line and exit code 2.

    >>> try:
    ...     check_integer("epochs", 0, 1)
    ... except TwoPhaseError as error:
    ...     print(error)
    epochs: 0 is not allowed; use a whole number of at least 1
    """


class InputError(TwoPhaseError, ValueError):
    """A field holds a value that is not allowed.

    >>> print(InputError("epochs", 0, "a whole number of at least 1"))
    epochs: 0 is not allowed; use a whole number of at least 1
    """

    def __init__(self, field: str, value: object, allowed: str):
        super().__init__(f"{field}: {value!r} is not allowed; use {allowed}")
        self.field, self.value, self.allowed = field, value, allowed


class DataError(TwoPhaseError):
    """A data file is missing, truncated or altered; the message names the file and the mend."""


class NonFiniteError(TwoPhaseError, ArithmeticError):
    """A loss or gradient is not-a-number or infinite where training cannot go on."""


def check_choice(field: str, value: object, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`; raise `InputError` (with a near match) if not.

    >>> check_choice("strategy", "adam", ["adam", "cg"])
    'adam'
    >>> check_choice("strategy", "adm", ["adam", "cg"])
    Traceback (most recent call last):
    twophase.errors.InputError: strategy: 'adm' is not allowed; ... (did you mean 'adam'?)
    """
    choices = list(choices)
    if value in choices:
        return value
    near = get_close_matches(str(value), choices, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise InputError(field, value, f"one of {', '.join(choices)}{hint}")


def check_integer(field: str, value: object, minimum: int) -> int:
    """Return `value` if it is a whole number of at least `minimum`; raise `InputError` if not.

    Numbers beyond 64 bits are refused, too: no generator, tensor or file could hold them.

    >>> check_integer("batch_size", 512, 1)
    512
    """
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or not minimum <= value < 2**63:
        raise InputError(field, value, f"a whole number of at least {minimum}")
    return value


def check_number(
    field: str,
    value: object,
    above: float = -math.inf,
    below: float = math.inf,
    minimum: float = -math.inf,
    maximum: float = math.inf,
) -> float:
    """Return `value` as float if it is finite and in the open (above, below) or closed range.

    Args:
        field: the name that the error shows.
        value: an int or float.
        above, below: bounds that `value` must not reach; none by default.
        minimum, maximum: bounds that it may reach; none by default.

    Raises:
        InputError: `value` is no int or float (a bool is none), is not-a-number or infinite, or
            lies outside the bounds.

    >>> check_number("factor", 0.9, above=0, maximum=1)
    0.9
    >>> check_number("factor", float("nan"), above=0, maximum=1)
    Traceback (most recent call last):
    twophase.errors.InputError: factor: nan is not allowed; use a finite number above 0 and ...
    """
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    inside = is_number and above < value < below and minimum <= value <= maximum
    # a whole number too large for a float is as good as infinite
    if not inside or not abs(value) <= sys.float_info.max:
        bounds = [
            f"{word} {bound:g}"
            for word, bound in (
                ("above", above),
                ("of at least", minimum),
                ("below", below),
                ("of at most", maximum),
            )
            if math.isfinite(bound)
        ]
        raise InputError(field, value, " ".join(["a finite number", " and ".join(bounds)]).strip())
    return float(value)
