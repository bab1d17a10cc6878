"""What a rendering of a template spends, and on what: an account, and the prices of what a template may do.

A step costs ``STEP``, a value about its bytes, before it is made. Whoever copies a list pays for its length; whoever
nests, prints or compares one pays for all that is in it, as often as it is in it: a list may hold another a million
times over.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, ValuesView
from collections.abc import Set as AbstractSet
from typing import Any

from jinja2 import TemplateRuntimeError, pass_context
from jinja2.runtime import Context

from edgepack.text.marks import concat

BUDGET = 1 << 28
"""What one rendering may spend: 2 million steps, or 256 MiB. A real template spends some thousand on a message."""
STEP = 128
NODE = 8
CPU_SECONDS = 10.0
"""Of the thread that renders: for what costs more than it pays. It is looked at now and then."""
_LOOK = 1 << 16
_WIDEST = 10_000  # columns, lines, digits: of no use beyond, and quadratic together with a long text
BITS = 1 << 16  # of an integer
_WIDE = re.compile(r"%[^%a-zA-Z]*(?:\d{5}|\*)|\{[^{}]*(?:\d{5}|\{)")

_REFUSED = frozenset({"encode", "expandtabs", "format_map", "maketrans", "to_bytes", "translate"})
_COMPARISONS: Mapping[str, Callable[[Any, Any], Any]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "lteq": operator.le,
    "gt": operator.gt,
    "gteq": operator.ge,
    "in": lambda left, right: left in right,
    "notin": lambda left, right: left not in right,
}


class ExhaustedError(TemplateRuntimeError):
    """A template asks for more than it may spend."""

    def __init__(self) -> None:
        super().__init__("it takes more time or memory than a template may")


class Account(Context):
    """What a rendering may still spend."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left, self._look = BUDGET, BUDGET - _LOOK
        self._end = time.thread_time() + CPU_SECONDS

    def spend(self, amount: int) -> None:
        """Take an amount away. Raises ``ExhaustedError`` where no more is left."""
        if amount > 0:
            self._left -= amount
        if self._left < self._look:
            self._look = self._left - _LOOK
            if self._left < 0 or time.thread_time() > self._end:
                raise ExhaustedError()

    def weigh(self, *values: object, times: int = 1) -> None:
        """Spend what a text of all values would hold, so many times over."""
        pending: list[Any] = list(values)
        while pending:
            value = pending.pop()
            if isinstance(value, Mapping):
                self.spend(times * STEP * len(value))
                pending += [*value.keys(), *value.values()]
            elif isinstance(value, (list, tuple, AbstractSet, ValuesView)):
                self.spend(times * STEP * len(value))
                pending += value
            else:
                self.spend(times * size(value))


def size(value: object) -> int:
    """Return about the bytes that a value takes, without those that it holds."""
    if isinstance(value, str):
        return len(value) if value.isascii() else 4 * len(value)
    if isinstance(value, int):
        return value.bit_length() // 2
    if isinstance(value, bytes):
        return 4 * len(value)
    return 16 * len(value) if isinstance(value, (list, tuple, dict)) else 0


@pass_context
def paid(context: Account, value: Any) -> Any:
    """What is nested, printed or looked up."""
    if type(value) is str:
        context.spend(size(value))
    elif type(value) is not int:
        context.weigh(value)
    return value


@pass_context
def steps(context: Account, values: Any, cost: int, at_once: bool) -> Iterable[Any]:
    """What a loop goes through, once each step is paid for: at once, or one by one."""
    if at_once and isinstance(values, (list, tuple, dict, range, str, AbstractSet, ValuesView)):
        context.spend(cost * len(values))
        return values
    return _walked(context, values, cost)


def _walked(context: Account, values: Iterable[Any], cost: int) -> Iterator[Any]:
    for value in values:
        context.spend(cost)
        yield value


@pass_context
def step(context: Account, cost: int) -> None:
    """A body that is gone through."""
    context.spend(cost)


@pass_context
def joined(context: Account, parts: tuple[object, ...]) -> str:
    """What stands between tildes."""
    for part in parts:
        paid(context, part)
    return concat(map(str, parts))


@pass_context
def added(context: Account, parts: tuple[Any, ...]) -> Any:
    """A sum of two and more."""
    length = 0
    for part in parts:
        if type(part) is not str:
            break
        length += size(part)
    else:
        context.spend(length)
        return "".join(parts)
    whole, *others = parts
    for part in others:
        paid(context, whole)
        paid(context, part)
        whole = whole + part
    return whole


@pass_context
def cut(context: Account, value: Any) -> Any:
    """A slice. A list of messages is cut again and again, and mostly dropped at once."""
    context.spend(2 * len(value) if isinstance(value, (list, tuple)) else size(value))
    return value


@pass_context
def compared(context: Account, left: Any, how: str, right: Any) -> Any:
    """A comparison."""
    if how not in ("in", "notin") or not isinstance(right, dict):
        paid(context, right)
    return _COMPARISONS[how](left, right)


def pay_product(context: Account, name: str, value: Any, given: Sequence[Any]) -> None:
    """Pay for what grows with two arguments at once."""
    widths = [each for each in given if isinstance(each, int)]
    if any(abs(width) > _WIDEST for width in widths):
        raise ExhaustedError()
    texts = [each for each in given if isinstance(each, str)]
    if name == "format":
        pay_layout(context, str(value), given)
    elif name == "indent":
        context.spend(str(value).count("\n") * max([*widths, *map(size, texts)], default=4))
    elif name == "replace" and len(texts) > 1:
        context.spend(_replaced(str(value), texts[0], texts[1]))
    elif name == "join":
        context.spend(
            len(value) * max(map(size, texts), default=0) if isinstance(value, (list, tuple, dict, str)) else 0
        )
    elif name == "sum" and any(isinstance(each, (list, tuple)) for each in given):
        raise TypeError("sum adds numbers")


def pay_layout(context: Account, layout: str, values: object) -> None:
    """Pay for a text with values at its places: each of them at each place, at most."""
    if _WIDE.search(layout):
        raise ExhaustedError()
    places = layout.count("%") + layout.count("{")
    context.weigh(values, times=places)
    context.spend(size(layout) + places * (_WIDEST if re.search(r"\d", layout) else STEP))


def pay_times(context: Account, values: Any, count: object) -> None:
    """Pay for a text or a list so many times over, with all that is in it."""
    if isinstance(count, int) and count > 1:
        context.weigh(values, times=count)


def _replaced(text: str, old: str, new: str) -> int:
    return (text.count(old) + 1) * (size(new) + 1)


def pay_call(context: Account, function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Pay for a call of a method of Python's own types, or of a function; return the arguments, iterators as lists."""
    args = tuple(list(each) if isinstance(each, Iterator) else each for each in args)
    name = getattr(function, "__name__", "")
    owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
    if name in _REFUSED and owner is not None:
        raise TypeError(f"a template may not call {name}")
    if isinstance(owner, str):
        context.spend(size(owner))
        if name == "format":
            pay_layout(context, owner, [*args, *kwargs.values()])
        elif name in ("split", "rsplit", "splitlines"):
            given = args[0] if args and isinstance(args[0], str) and args[0] else None
            context.spend(STEP * (owner.count(given) if given else len(owner) // 4))
        elif name == "replace" and len(args) > 1 and isinstance(args[0], str) and isinstance(args[1], str):
            context.spend(_replaced(owner, args[0], args[1]))
        elif name == "join":
            context.weigh(args)
            context.spend(size(owner) * sum(len(each) for each in args if hasattr(each, "__len__")))
        else:
            context.spend(sum(each for each in args if isinstance(each, int) and each > 0))
    elif name in ("index", "count", "copy"):
        context.weigh(owner)
    if not isinstance(owner, (str, dict)):
        context.weigh(args, kwargs)
    return args


PRICED = (steps, step, compared, joined, added, cut, paid)
"""What takes a place of its own in a compiled template."""
