"""A model that another program wrote: edgepack knows its sizes, what goes in and what comes out."""

from __future__ import annotations

from typing import Annotated

import msgspec

from edgepack.bundle.bounds import MAX_LAYERS, PortName


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a graph reads a layer's keys or values and where it writes them, by name: float32 [1, KV heads, tokens,
    head dimension]. ``present`` has those of ``past`` first and then those of the step."""

    past: PortName
    present: PortName


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The inputs and outputs of a graph with a KV cache, by name; a step of n tokens follows m in the cache.

    ``ids``: int64 [1, n]. ``mask``: int64 [1, m + n], ones. ``positions``: int64 [1, n], m and following; None where
    the graph has no such input. ``logits``: float32 [1, n, n_vocab]. ``cells``: keys and then values of each layer.
    """

    ids: PortName
    mask: PortName
    positions: PortName | None
    logits: PortName
    cells: Annotated[tuple[Cell, ...], msgspec.Meta(min_length=2, max_length=2 * MAX_LAYERS)]


class Exported(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What another program made of a model: edgepack knows what goes in and what comes out, and not the computation.

    ``exporter``: that program and its version. ``n_parameters``: elements of the source's tensors. ``graph`` is None
    for a payload that is run by the exporter's own model code.
    """

    exporter: str
    n_parameters: Annotated[int, msgspec.Meta(gt=0, le=1 << 50)]
    graph: Graph | None = None


def check(graph: Graph, layers: int) -> None:
    """Raise ``ValueError`` unless a graph has two cells for each layer, and each name once."""
    cells, place = 2 * layers, "at `$.decoder.exported.graph`"
    if len(graph.cells) != cells:
        raise ValueError(f"{layers} layers have {cells} cells and not {len(graph.cells)} - {place}")
    names = [graph.ids, graph.mask, graph.positions, graph.logits]
    names += [name for cell in graph.cells for name in (cell.past, cell.present)]
    if twice := next((name for name in names if name is not None and names.count(name) > 1), None):
        raise ValueError(f"the name {twice[:40]!r} stands there twice - {place}")
