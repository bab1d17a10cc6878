"""Targets write a decoder as what one engine loads. Found through the entry point group ``edgepack.targets``.

Writing is push: the build reads each block of the source once and hands it to every open writer. Reading back is
separate and independent: it parses the finished files anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.embedding import Embedding
from edgepack.bundle.manifest import Fallback
from edgepack.errors import UsageError
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.feedback import Feedback
from edgepack_packager.targets.kv_cache import Cache
from edgepack_packager.text.side import Text

FloatType = Literal["f32", "f16", "bf16"]

Activations = FloatType | int
"""A float type, or 8 bits with one scale, the largest magnitude over 127, for so many neighbours."""

UNIFORM = ("f32", "f16", "q8", "q4")

Scales = Literal["own", "searched", "calibrated"]
"""What chooses a variant's scales: the scheme's own rule, which is its peers' where it has any; the least squared error
of the weights; or that error weighed by what a text multiplies them with."""

SUFFIXES: Mapping[Scales, str] = MappingProxyType({"own": "", "searched": "-searched", "calibrated": "-cal"})
"""What they add to a variant's name: a scheme's alone says that its bytes are those of its own rule."""

CALIBRATED_BITS = 8
"""From which on levels are so fine that no choice of scales tells."""

FLOAT_BITS = 16
"""From which on a scheme quantises nothing."""

Forms = Mapping[str, str]
"""The form of each matrix that has one of its own: a name among its slot's, by the canonical name. All others follow
the scheme's rule, and so do all of an empty one."""

NO_FORMS: Forms = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Model:
    """What a target writes: the decoder, its name, the source's element type ("f32", "f16", "bf16"), the source's
    config.json (empty for a proof's slice) and its text side (None for a proof's slice, which has no vocabulary).

    ``cache_scales`` are those of ``reference.cache_scales``, where payloads have a KV cache of q8 built in.
    ``importance`` is what an error in each column of a matrix counts, float32 [columns] by the canonical name: where it
    says so, scales are searched. Empty where the scheme's own rule chooses them. ``feedback`` is what errors are made
    good by, of those matrices whose levels know of it, by the canonical name. ``forms`` are the matrices that do not
    follow the scheme's rule. ``embedding`` is what is made of a text, where the decoder has no head.
    """

    name: str
    decoder: Decoder
    dtype: str
    config: Mapping[str, Any] = field(default_factory=dict)
    text: Text | None = None
    cache_scales: Mapping[str, Float32] = field(default_factory=dict)
    importance: Mapping[str, Float32] = field(default_factory=dict)
    feedback: Mapping[str, Feedback] = field(default_factory=dict)
    forms: Forms = field(default_factory=dict)
    embedding: Embedding | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A variant's sizes, which follow from the decoder alone, and the tensors that could not take the scheme.

    ``data_bytes``: of the weight files, as far as a config can tell: all but a header that holds a tokenizer, which
    GGUF has; ``tensor_bytes``: of the
    canonical tensors alone; ``weights_bytes``: what the engine takes of memory for them, of which it needs
    ``loading_bytes`` for a second copy while it loads, and later only for what tokens touch of it.
    """

    data_bytes: int
    tensor_bytes: int
    weights_bytes: int
    fallbacks: tuple[Fallback, ...]
    loading_bytes: int = 0

    def bits(self, decoder: Decoder) -> float:
        """Effective bits per weight, to two digits after the point: 8 times the bytes over the decoder's parameters."""
        return round(8 * self.tensor_bytes / decoder.n_parameters, 2)


class Writer(Protocol):
    """A variant that is being written."""

    def write(self, name: str, start: int, rows: Float32) -> None:
        """Take rows [start, start + len(rows)) of a canonical tensor, in the order of ``weights.blocks``."""
        ...

    def finish(self) -> Written:
        """Complete and close the files. Raises ``BuildError`` where a tensor was not written whole."""
        ...

    def abort(self) -> None:
        """Close the files as they are; the build deletes them. Safe after ``finish``."""
        ...


@dataclass(frozen=True, slots=True)
class Form:
    """How a tensor is stored: the kind of its numbers, their bits, how many neighbours in a row share a scale, and the
    type of those scales.

    ``kind`` names a rule of quantisation: one of ggml's types ("q4_0", "q6_K"), "affine" (levels q of
    q * scale + bias), "signed" ((q - 2**(bits - 1)) * scale) or "asymmetric" ((q - z) * scale for a whole z that is
    one of the levels); or it is a float type, whose group is 1.
    """

    kind: str
    bits: int
    group: int = 1
    scales: FloatType = "f16"


@dataclass(frozen=True, slots=True)
class Slot:
    """Matrices that share a form, as they are one tensor in the file, and the forms that they can take.

    ``tensors``: their canonical names, in model order. ``forms``: the bytes that they take together in each, by the
    form's name, fewest first.
    """

    tensors: tuple[str, ...]
    forms: Mapping[str, int]


class Reader(Protocol):
    """A finished variant, read back tensor by tensor from its own headers."""

    def form(self, name: str) -> Form:
        """Return how the file stores a canonical tensor. Raises ``BuildError`` where the file lacks it."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a canonical tensor, dequantised: float32. Raises ``BuildError`` where the file lacks it."""
        ...

    def bound(self, name: str) -> float:
        """Return the relative part of the error that the scheme allows: |w' - w| <= bound |w| + floor (L2, a row)."""
        ...

    def floor(self, name: str) -> float:
        """Return its absolute part, which half-precision scales need where a row is close to zero."""
        ...

    def cache(self, kind: KvCache) -> Cache | None:
        """Return what the engine's attention rounds with a KV cache of that type, None for nothing."""
        ...

    def close(self) -> None: ...


class Format(Protocol):
    """What a manifest says of a variant's format: whose it is, which runtime loads it, from which version on, and the
    type of the KV cache where that is built in."""

    @property
    def name(self) -> str: ...

    @property
    def runtime(self) -> str: ...

    def floor(self, decoder: Decoder) -> str: ...

    @property
    def kv_cache(self) -> KvCache | None: ...


class Target(Protocol):
    """A format.

    ``schemes`` maps the names of its quantisations to their nominal bits per weight (32: exact). ``searched`` are those
    that have searched scales by their own rule, and no peer; ``needs_calibration`` those that make nonsense of any
    model unless a text chose their scales; ``for_grids`` those whose writer takes weights on their grid and no others.
    ``fed`` are the forms whose levels make good the errors of those before them, where a model has ``feedback``.
    ``kv_cache`` is the element type of the KV cache where its payloads fix one, None where the runtime chooses or has
    only one.
    """

    name: str
    runtime: str
    packages: tuple[str, ...]
    schemes: Mapping[str, int]
    searched: frozenset[str]
    needs_calibration: frozenset[str]
    for_grids: frozenset[str]
    fed: frozenset[str]
    kv_cache: KvCache | None

    def floor(self, decoder: Decoder) -> str:
        """Return the version of the engine from which on it computes a decoder."""
        ...

    def nmse(self, decoder: Decoder) -> float:
        """Return the limit of an exact variant: 1e-10, more only where the engine's own arithmetic needs it."""
        ...

    def activations(self, form: Form) -> Activations:
        """Return what the engine rounds the activations to before it multiplies them with a matrix of that form."""
        ...

    def scheme(self, quant: str, model: Model) -> str:
        """Map a uniform name ("f32", "f16", "q8", "q4") or one of ``schemes`` to the scheme to write.

        Raises ``UsageError`` for an unknown name, ``ExtraMissingError`` where the scheme's library is missing,
        ``UnsupportedModelError`` for a decoder that the engine cannot run exactly; it names the feature and, where a
        shorter ``--context`` helps, that.
        """
        ...

    def check(self, model: Model, scheme: str) -> None:
        """Refuse what could not be written or read back: told from the model without its weights.

        Raises ``UnsupportedModelError`` for a text side that the format cannot carry, ``ExtraMissingError`` where a
        library is missing.
        """
        ...

    def measure(self, decoder: Decoder, dtype: str, scheme: str, forms: Forms = NO_FORMS) -> Written:
        """Return what a writer will report, from the decoder and the source's element type ("f32", "f16", "bf16")."""
        ...

    def slots(self, decoder: Decoder, dtype: str) -> Sequence[Slot]:
        """Return all matrices, in model order, with the forms that they may be given beside the scheme "q4" means."""
        ...

    def ruled(self, decoder: Decoder, dtype: str, scheme: str) -> Forms:
        """Return the form that a scheme, calibrated, gives each matrix by its rule, of those that it quantises."""
        ...

    def rounded(self, model: Model, name: str, rows: Float32, form: str) -> Float32:
        """Return rows of a canonical matrix, float32 [n, columns], as a variant with that form would hold them.

        They are encoded by the model's ``importance`` and ``feedback``, as its writer does. Raises ``BuildError`` as
        that.
        """
        ...

    def open(self, folder: Path, model: Model, scheme: str) -> Writer:
        """Create the files of a variant in an empty folder, sized, and return the writer of their tensors."""
        ...

    def read(self, folder: Path, decoder: Decoder) -> Reader:
        """Open a finished variant for reading back."""
        ...


@runtime_checkable
class FixesKvCache(Protocol):
    """A target whose payloads have the type of their KV cache built in."""

    def with_kv_cache(self, kv_cache: KvCache) -> Target:
        """Return the target of payloads with a KV cache of that type."""
        ...


@dataclass(frozen=True, slots=True)
class Request:
    """One variant to build: the target, the quantisation as the user asked for it, the scheme that it means, and what
    chooses its scales.

    ``forms`` are the matrices that do not follow the scheme's rule; such a variant is ``called`` otherwise than its
    scheme.
    """

    target: Target
    asked: str
    scheme: str
    scales: Scales = "own"
    forms: Forms = field(default_factory=dict)
    called: str = ""

    @property
    def calibrated(self) -> bool:
        """Whether its scales are those that lose least by what a text uses."""
        return self.scales == "calibrated"

    @property
    def id(self) -> str:
        """The variant's name in the bundle."""
        cache = f"-kv{self.target.kv_cache[1:]}" if self.target.kv_cache else ""
        if self.called:
            return f"{self.target.name}-{self.called}{cache}"
        return f"{self.target.name}-{self.scheme}{cache}{SUFFIXES[self.scales]}"

    @property
    def packages(self) -> dict[str, str]:
        """The packages that shape its bytes, with their versions here."""
        return {name: version(name) for name in self.target.packages}

    def fed(self, decoder: Decoder, dtype: str) -> frozenset[str]:
        """Return the matrices whose levels make good each other's errors; all, where their forms are to be chosen.

        Not a tied embedding, which is no product alone.
        """
        if not self.calibrated:
            return frozenset()
        ruled = self.target.ruled(decoder, dtype, self.scheme)
        forms = {**ruled, **self.forms}
        return frozenset(
            name
            for name, shape in decoder.tensors()
            if len(shape) == 2 and not name.endswith("embedding") and (forms.get(name) in self.target.fed or self._open)
        )

    @property
    def _open(self) -> bool:
        """Whether its forms are to be chosen yet, among which there are such."""
        return bool(self.called and not self.forms and self.target.fed)

    def measure(self, decoder: Decoder, dtype: str) -> Written:
        """Return what its writer will report."""
        return self.target.measure(decoder, dtype, self.scheme, self.forms)


def names() -> list[str]:
    """Return the names of all registered targets, sorted."""
    return sorted(entry.name for entry in entry_points(group="edgepack.targets"))


def find(name: str) -> Target:
    """Return the registered target of that name. Raises ``UsageError`` where there is none."""
    for entry in entry_points(group="edgepack.targets", name=name):
        target: Target = entry.load()()
        return target
    raise UsageError(f"No target is called {name!r}.", hint=f"Choose from: {', '.join(names())}.")
