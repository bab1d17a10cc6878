"""Jinja in a sandbox whose templates mark what they write: see ``edgepack.text.marks``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment

from edgepack.text.marks import concat, written


class _Generator(CodeGenerator):
    """Compiles a template so that the texts that it spells out are marked, and ``~`` and ``join`` keep marks."""

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.written({super()._output_const_repr(group)})"

    def visit_Const(self, node: nodes.Const, frame: Frame) -> None:  # noqa: N802 - the names that jinja2 calls
        if isinstance(node.value, str):
            self.write(f"environment.written({node.value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        if frame.eval_ctx.volatile or frame.eval_ctx.autoescape:
            super().visit_Concat(node, frame)
            return
        self.write("concat(map(str, ")
        self.visit(nodes.Tuple(node.nodes, "load"), frame)
        self.write("))")

    def visit_Filter(self, node: nodes.Filter, frame: Frame) -> None:  # noqa: N802
        if node.name == "join" and not node.args and all(each.key != "d" for each in node.kwargs):
            node.args = [nodes.Const("")]  # whose method it is that joins
        super().visit_Filter(node, frame)


class MarkingEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox. It does without the optimizer, which puts lists and objects of texts in the place of texts."""

    code_generator_class = _Generator
    written = staticmethod(written)
    concat = staticmethod(concat)

    def __init__(self, **options: Any) -> None:
        super().__init__(optimized=False, **options)
