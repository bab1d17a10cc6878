"""Jinja in a sandbox that counts: a template of a stranger stops after a bounded time, with bounded memory.

Nothing can interrupt a template from outside without danger for the program around it, so that it pays as it goes:
before a template is compiled, what repeats (loops, macros, calls) and what makes or compares values is led through
functions that spend from the one account of a rendering (``edgepack.text.account``). Constants are not computed
beforehand, for that nobody would pay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sized
from functools import partial, reduce
from typing import Any

from jinja2 import nodes, pass_context
from jinja2.runtime import BlockReference, Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from edgepack.text import account
from edgepack.text.account import NODE, STEP, Account, ExhaustedError

MAX_SOURCE = 256 * 1024

# Quadratic in what they are given, or of no use to a prompt.
_WITHOUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
# Do not look into what they are given.
_SHALLOW = frozenset(("abs", "attr", "count", "d", "default", "first", "float", "int", "items", "last", "length",
                      "random", "round", "safe"))  # fmt: skip
# Take one after the other, and whatever else they do with it, a filter or a test of their own pays for.
_WALKS = frozenset(("list", "map", "reject", "rejectattr", "reverse", "select", "selectattr"))
_TESTS = {"in": "in", "eq": "eq", "equalto": "eq", "==": "eq", "ne": "ne", "!=": "ne", "lt": "lt", "lessthan": "lt",
          "<": "lt", "le": "lteq", "<=": "lteq", "gt": "gt", "greaterthan": "gt", ">": "gt", "ge": "gteq",
          ">=": "gteq"}  # fmt: skip


class MeteredEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. What is called, filtered, computed and captured in it spends from the rendering's account."""

    context_class = Account
    intercepted_binops = frozenset({"*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, **options)
        del self.globals["lipsum"]
        self.globals["namespace"] = _Namespace
        tests: dict[str, Any] = self.tests
        self.filters = {name: _metered(name, each) for name, each in self.filters.items() if name not in _WITHOUT}
        self.tests |= {name: _tested(how) for name, how in _TESTS.items()}
        self.tests |= {name: _metered(name, tests[name]) for name in ("lower", "upper")}
        # Names that a template cannot write; where it can give one as a text, ``call_filter`` does not find it.
        self.filters |= {f"*{each.__name__}": each for each in account.PRICED}

    def compile(self, source: Any, *args: Any, **kwargs: Any) -> Any:
        """Compile a template in which everything is counted."""
        if isinstance(source, str):
            if len(source) > MAX_SOURCE:
                raise ValueError(f"it has more than {MAX_SOURCE:,} characters")
            source = _Counting().visit(self.parse(source))
            source.set_environment(self)
        return super().compile(source, *args, **kwargs)

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Apply a filter that a template names by a text."""
        return super().call_filter(name.lstrip("*"), *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what two operands make, once it is paid for."""
        assert isinstance(context, Account)
        numbers = isinstance(left, (int, float)), isinstance(right, (int, float))
        if operator == "%" and isinstance(left, str):
            account.pay_layout(context, left, right)
        elif operator == "*" and not all(numbers):
            values, count = (right, left) if numbers[0] else (left, right)
            account.pay_times(context, values, count)
        elif isinstance(left, int) and isinstance(right, int) and operator != "%":
            bits = left.bit_length() * max(0, right) if operator == "**" else left.bit_length() + right.bit_length()
            if bits > account.BITS:
                raise ExhaustedError()
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call an object, once it is paid for."""
        assert isinstance(__context, Account)
        __context.spend(STEP)
        if not isinstance(__obj, (Macro, LoopContext, BlockReference)):
            args = account.pay_call(__context, __obj, args, kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class _Namespace(Namespace):
    """A namespace whose text is not that of all that it holds: it may hold itself."""

    def __repr__(self) -> str:
        return "<Namespace>"


class _Counting(NodeTransformer):
    """Puts what spends around what is to be paid for.

    What is printed is paid for only where it is captured, as in a macro: elsewhere it leaves at once, and is counted.
    """

    def __init__(self) -> None:
        self._captures = 0

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 - the names that jinja2 calls
        cost = nodes.Const(_cost(node.body))
        # What may end before its end pays by the step, all else at its beginning.
        at_once = nodes.Const(node.find(nodes.Break) is None)
        if node.recursive:
            return self._capture(node)
        self.generic_visit(node)
        node.iter = _filter(account.steps, node.iter, cost, at_once)
        return node

    def _capture(self, node: Any) -> nodes.Node:
        cost = nodes.Const(_cost(node.body))
        self._captures += 1
        self.generic_visit(node)
        self._captures -= 1
        node.body.insert(0, nodes.ExprStmt(_filter(account.step, cost, lineno=node.lineno), lineno=node.lineno))
        return node  # type: ignore[no-any-return]

    visit_Macro = visit_CallBlock = visit_Block = visit_AssignBlock = visit_FilterBlock = _capture  # noqa: N815

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if self._captures:
            node.nodes = [
                each if isinstance(each, (nodes.TemplateData, nodes.Const)) else _filter(account.paid, each)
                for each in node.nodes
            ]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _filter(account.joined, nodes.Tuple(node.nodes, "load", lineno=node.lineno))

    def visit_Add(self, node: nodes.Add) -> nodes.Node:  # noqa: N802
        """Make a + b + c one sum."""
        parts: list[nodes.Expr] = []
        whole: nodes.Expr = node
        while isinstance(whole, nodes.Add):
            parts.insert(0, whole.right)
            whole = whole.left
        parts = [self.visit(each) for each in (whole, *parts)]
        return _filter(account.added, nodes.Tuple(parts, "load", lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        """What is compared with a constant costs no more than that; only a chain of comparisons has a middle."""
        self.generic_visit(node)
        left: nodes.Expr = node.expr
        parts: list[nodes.Expr] = []
        for each in node.ops:
            plain = isinstance(left, nodes.Const) or isinstance(each.expr, nodes.Const)
            if each.op in ("in", "notin"):
                plain = isinstance(each.expr, nodes.Const) or _is_short(each.expr)
            pair = nodes.Compare(left, [each], lineno=node.lineno)
            parts.append(pair if plain else _filter(account.compared, left, nodes.Const(each.op), each.expr))
            left = each.expr
        return reduce(partial(nodes.And, lineno=node.lineno), parts)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            return _filter(account.cut, node)
        if not isinstance(node.arg, nodes.Const):
            node.arg = _filter(account.paid, node.arg)
        return node

    def visit_List(self, node: nodes.Node) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return node if _is_short(node) or getattr(node, "ctx", "load") != "load" else _filter(account.paid, node)

    visit_Tuple = visit_Dict = visit_List  # noqa: N815


def _filter(function: Any, value: nodes.Node, *arguments: nodes.Node, lineno: int | None = None) -> nodes.Filter:
    lineno = lineno or value.lineno
    return nodes.Filter(value, f"*{function.__name__}", list(arguments), [], None, None, lineno=lineno)


def _is_short(node: nodes.Node) -> bool:
    """Whether a list is one of constants, as the template wrote it."""
    return isinstance(node, (nodes.List, nodes.Tuple)) and all(isinstance(item, nodes.Const) for item in node.items)


def _cost(body: Iterable[nodes.Node]) -> int:
    """Return what it costs to go through a body once, with all that is in it, whether that is reached or not."""
    cost, pending = STEP, list(body)
    while pending:
        node = pending.pop()
        cost += len(node.data) if isinstance(node, nodes.TemplateData) else NODE
        pending += node.iter_child_nodes()
    return cost


def _tested(how: str) -> Callable[..., Any]:
    @pass_context
    def test(context: Account, left: Any, right: Any) -> Any:
        return account.compared(context, left, how, right)

    return test


def _metered(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that pays for what it reads and for what it makes."""
    wants = getattr(getattr(function, "jinja_pass_arg", None), "name", None)

    @pass_context
    def metered(context: Account, value: Any, *args: Any, **kwargs: Any) -> Any:
        given = [*args, *kwargs.values()]
        if type(value) is str and not given:
            context.spend(4 * account.size(value) + (STEP * len(value) if name == "list" else STEP))
        elif name in _WALKS:
            context.spend(STEP // 4 * len(value) if isinstance(value, Sized) else STEP)
        elif name in _SHALLOW:
            context.spend(STEP)
        else:
            if isinstance(value, Iterator):
                value = list(value)
            context.weigh(value, given)
            account.pay_product(context, name, value, given)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}
        result = function(*([first[wants]] if wants else ()), value, *args, **kwargs)
        if isinstance(result, list):
            context.weigh(result)
        return result

    return metered
