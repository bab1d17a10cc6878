"""A session of a graph that an exporter wrote: each step reads a KV cache and writes another, longer by the step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack import snapshot
from edgepack.bundle.decoder import Decoder
from edgepack.errors import EngineError
from edgepack.runtime import Options
from edgepack_runtimes.onnx import foreign
from edgepack_runtimes.onnx.stepping import Float32, Stepping
from edgepack_runtimes.onnx.wire import GRAPH_FILE

if TYPE_CHECKING:
    from onnxruntime import OrtValue


class ExportedSession(Stepping):
    """See ``edgepack.runtime.Session``; on the CPU. What a rewind or a cancel leaves is cut off by the next step."""

    def __init__(self, variant: Path, decoder: Decoder, options: Options) -> None:
        if not decoder.exported or decoder.exported.graph is None:
            raise EngineError(f"{variant}: the manifest says nothing of a graph.", hint="Build it again.")
        super().__init__(variant, decoder, options, "cpu", lambda: foreign.check(variant))
        self._graph = decoder.exported.graph
        self._check_signature(variant / GRAPH_FILE)
        self._positions = np.arange(options.context, dtype=np.int64)
        self._whole = np.empty((len(self._ids), decoder.n_vocab), np.float32)  # logits of a chunk of which few count
        self._cells = self._values(self._empty())

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens, which are all kept."""
        self._check_rewind(length)
        self._length = length
        return length

    def snapshot(self) -> bytes:
        """Return the keys and values of each layer, [KV heads, length, head dimension], sealed."""
        self._check_use()
        self._cut()
        return snapshot.seal(self._facts, self._length, [cell.numpy().tobytes() for cell in self._cells])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError`` with the cache as it was."""
        self._check_use()
        length, payload = snapshot.unseal(state, self._facts, self._options.context)
        attention = self._decoder.attentions[0]
        shape = (len(self._cells), 1, attention.n_kv_heads, length, attention.head_dim)
        self._cells = self._values(list(np.frombuffer(payload, np.float32).reshape(shape)))
        self._length = length

    def _release(self) -> None:
        self._cells = []

    def _step(self, ids: list[int], start: int, logits: Float32) -> None:
        self._cut()
        graph, binding, count = self._graph, self._binding, len(ids)
        self._ids[:count] = ids
        binding.clear_binding_inputs()
        binding.clear_binding_outputs()
        self._bind_input(graph.ids, self._ids, (1, count))
        self._bind_input(graph.mask, self._mask, (1, self._length + count))
        if graph.positions is not None:
            self._bind_input(graph.positions, self._positions[self._length :], (1, count))
        # The graph makes all logits of a step, whether anybody asks for them or not.
        target = logits if len(logits) == count else self._whole[:count]
        self._bind_logits(graph.logits, target, (1, count, self._decoder.n_vocab))
        for names, cell in zip(graph.cells, self._cells, strict=True):
            binding.bind_ortvalue_input(names.past, cell)
            binding.bind_output(names.present, "cpu")
        self._run()
        self._cells = binding.get_outputs()[1:]
        if target is not logits:
            logits[:] = target[start:]
        self._length += count

    def _cut(self) -> None:
        """Let the cache hold ``length`` tokens, of which it may hold more."""
        if self._cells[0].shape()[2] > self._length:
            self._cells = self._values([cell.numpy()[:, :, : self._length] for cell in self._cells])

    def _empty(self) -> list[Float32]:
        attention = self._decoder.attentions[0]
        empty = np.empty((1, attention.n_kv_heads, 0, attention.head_dim), np.float32)
        return [empty] * len(self._graph.cells)

    def _values(self, arrays: Sequence[Float32]) -> list[OrtValue]:
        from onnxruntime import OrtValue

        return [OrtValue.ortvalue_from_numpy(np.array(each, np.float32, order="C")) for each in arrays]

    def _check_signature(self, path: Path) -> None:
        """The graph must have the manifest's inputs and outputs, and no others, of their types and sizes."""
        decoder, graph = self._decoder, self._graph
        attention = decoder.attentions[0]
        cell = ("tensor(float)", 4, (attention.n_kv_heads, attention.head_dim))
        numbers: tuple[str, int, tuple[int, ...]] = ("tensor(int64)", 2, ())
        wanted = {name: numbers for name in (graph.ids, graph.mask, graph.positions) if name is not None}
        wanted |= {graph.logits: ("tensor(float)", 3, (decoder.n_vocab,))}
        wanted |= {name: cell for names in graph.cells for name in (names.past, names.present)}
        engine = self._engine
        nodes = (*engine.get_inputs(), *engine.get_outputs(), *engine.get_overridable_initializers())
        found = {
            node.name: (node.type, len(node.shape), tuple(size for size in node.shape if isinstance(size, int)))
            for node in nodes
        }
        if found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise EngineError(f"{path} is not the manifest's graph: {names[0]} differs.", hint="Build it again.")
