"""Settings: small objects that print, compare, and go to and from JSON and text."""

import ast
import warnings
from collections.abc import Callable
from dataclasses import field as dataclass_field
from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from functools import partial
from typing import Any, ClassVar, Self

from twophase.errors import InputError

# What is allowed where a class is named.
NAMED = "the name of settings of this library"
# A field of what a `Stateful` object has seen, no part of its settings.
state = partial(dataclass_field, init=False, repr=False, compare=False)


class Settings:
    """Base of the dataclasses that choose how something is done, known by their names.

    Their `repr` is what `from_text` reads, and `to_dict` what `from_dict` reads.

    >>> from twophase import GoldenSection
    >>> GoldenSection(rtol=1e-3).to_dict()
    {'type': 'GoldenSection', 'rtol': 0.001, 'max_evaluations': 100}
    >>> from_text("GoldenSection(1e-3)") == from_dict(GoldenSection(rtol=1e-3).to_dict())
    True
    """

    kinds: ClassVar[dict[str, Callable[..., Any]]] = {}
    # Fields that JSON has only where they are not the default, so that it is as before they came.
    added: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        Settings.kinds[cls.__name__] = cls

    def to_dict(self) -> dict[str, Any]:
        """The settings for JSON, or `InputError` where they hold a function or the like."""
        usual = {n for n in self.added if getattr(self, n) == getattr(type(self), n)}
        content = {n: _plain(n, getattr(self, n)) for n in _names(self) if n not in usual}
        return {"type": type(self).__name__} | content


class Stateful:
    """Settings that also hold what was seen, as `state` that no comparison, text or JSON shows."""

    def fresh(self) -> Self:
        """The same settings with nothing seen yet."""
        return replace(self)  # type: ignore[type-var]


def from_dict(content: Any, field: str = "settings") -> Any:
    """The object that `to_dict` described; lists become tuples, numbers and texts stay.

    `InputError`, which calls the content `field`, for an unknown type or field, or a wrong value.
    """
    if isinstance(content, list):
        return tuple(from_dict(part, field) for part in content)
    if not isinstance(content, dict):
        return content
    try:
        given = {name: from_dict(part, name) for name, part in content.items() if name != "type"}
    except RecursionError:
        raise InputError(field, "...", "settings in fewer layers") from None
    return _made(str(content.get("type")), [], given, field)


def from_text(text: str, field: str = "settings") -> Any:
    """The object that a text such as "StrongWolfe(c2=0.1)" or "None" stands for; runs no code.

    A bare name stands for the object with its defaults. `InputError` as for `from_dict`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)  # the error says it
            return _value(ast.parse(text.strip(), mode="eval").body, field)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(field, text, 'a text such as "GoldenSection(rtol=0.01)"') from None


def _value(node: ast.expr, field: str) -> Any:
    if isinstance(node, ast.Name):
        return _made(node.id, [], {}, field)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        positional = [_value(part, field) for part in node.args]
        named = {str(part.arg): _value(part.value, str(part.arg)) for part in node.keywords}
        return _made(node.func.id, positional, named, field)
    return ast.literal_eval(node)


def _made(name: str, positional: list[Any], named: dict[str, Any], field: str) -> Any:
    kinds = known_kinds()
    if name not in kinds:
        near = get_close_matches(name, kinds, n=1)
        raise InputError(field, name, NAMED + f" (did you mean {near[0]!r}?)" if near else NAMED)
    kind = kinds[name]
    known = _names(kind)
    for unknown in named.keys() - set(known):
        raise InputError(field, unknown, f"fields of {name}: {', '.join(known) or 'none'}")
    if len(positional) > len(known):
        raise InputError(field, positional[-1], f"at most {len(known)} arguments of {name}")
    try:
        return kind(*positional, **named)
    except TypeError as error:
        raise InputError(field, name, f"arguments that it takes ({error})") from None


def known_kinds() -> dict[str, Any]:
    """The classes that a text can name: all but those that others have in common."""
    return {name: kind for name, kind in Settings.kinds.items() if is_dataclass(kind)}


def _names(settings: Any) -> list[str]:
    return [part.name for part in fields(settings) if part.init]


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, Settings):
        return value.to_dict()
    if isinstance(value, tuple | list):
        return [_plain(name, part) for part in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise InputError(name, value, "settings of this library, numbers, texts or None")
