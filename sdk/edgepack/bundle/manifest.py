"""The manifest: what a bundle says of itself. ``docs/bundle-format.md`` defines each field; this is the same in types.

Plain data, bytes in and values out: it opens no file. An unknown field is an error, because the version and the
features say beforehand whether this reader understands the document.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgepack.bundle import earlier, embedding, form
from edgepack.bundle.bounds import Count, Width
from edgepack.bundle.decoder import Decoder, KvCache, check
from edgepack.bundle.embedding import Embedding, Nearness, VectorTest
from edgepack.bundle.thinking import Thinking
from edgepack.errors import BundleDamagedError, BundleTooNewError

VERSION = 2
KV_CACHE, KV_CACHE_Q8 = "kv_cache", "kv_cache_q8"
LOSS = "loss"
CHAT_PARTS, CHAT_LEADING, CHAT_TOOL_USE = "chat_parts", "chat_leading", "chat_tool_use"
CHAT_THINKING = "chat_thinking"
DRAFT = "draft"
EXPORTED, EMBEDDING = "exported", "embedding"
SEQUENCE, PARENT = "sequence", "parent"
FEATURES: frozenset[str] = frozenset(
    {
        *(KV_CACHE, KV_CACHE_Q8, LOSS, CHAT_PARTS, CHAT_LEADING, CHAT_TOOL_USE, CHAT_THINKING),
        *(DRAFT, EXPORTED, EMBEDDING, SEQUENCE, PARENT),
    }
)

HIGH_LOSS = 0.25
"""Nats on text. Of simple facts that a model of 135 M parameters knows, a variant that loses 0.3 to 0.45 answers about
half, one that loses 0.06 nearly all; ``docs/proof.md``."""

Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]
PlainName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
Day = Annotated[str, msgspec.Meta(pattern=r"^\d{4}-\d{2}-\d{2}$")]
ProbePart = Literal["text", "random"]
TokenId = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class _Plain(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class Schema(msgspec.Struct, frozen=True):
    """The only part that every reader of every version can read."""

    version: Count
    features: list[str] = []


class File(_Plain, frozen=True, kw_only=True):
    """A file of the bundle: its path relative to the bundle's folder (a variant's: to the variant's folder)."""

    path: str
    size: Size
    sha256: Sha256


class Producer(_Plain, frozen=True, kw_only=True):
    """The tools that wrote the bundle, and the recipe that they were given."""

    edgepack: str
    packages: dict[str, str]
    recipe: dict[str, str | int | list[str]]


class Source(_Plain, frozen=True, kw_only=True):
    """What was converted."""

    name: str
    repository: str | None
    revision: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{40}$")] | None
    files: list[File]


class Obligation(_Plain, frozen=True, kw_only=True):
    """What a licence asks of whoever passes the model on: its kind, the exact words, and where to read more."""

    kind: str
    text: str
    url: str | None = None


class License(_Plain, frozen=True, kw_only=True):
    """The terms of the model: an SPDX expression or a LicenseRef, and the files that carry the text and the notices.

    ``notice`` is the sentence that every copy carries, ``accepted`` says that the licence asks to be accepted and that
    the builder did, ``gated`` that the source's host asks for agreement before a download.
    """

    id: str
    files: list[str]
    name: str | None = None
    url: str | None = None
    notice: str | None = None
    obligations: list[Obligation] = []
    accepted: bool = False
    gated: bool = False


class Probe(_Plain, frozen=True, kw_only=True):
    """A text and the token ids that it must give, without BOS. ``special``: names of special tokens are parsed."""

    text: str
    special: bool = False
    ids: list[TokenId]


class Tokenizer(_Plain, frozen=True, kw_only=True):
    """Facts of ``tokenizer.json``. ``rows`` counts its entries, which may be fewer than the embedding's."""

    rows: Width
    bos: TokenId | None
    add_bos: bool
    probes: list[Probe]


class Stop(_Plain, frozen=True, kw_only=True):
    """A token that ends a turn, its text, and the files that say so."""

    id: TokenId
    text: str
    sources: list[str]


class Golden(_Plain, frozen=True, kw_only=True):
    """A conversation and what the chat template must make of it: a text and its token ids, or a refusal.

    ``tools`` and ``variables`` are given to the template as ``ChatTemplate.render`` takes them. ``refusal`` is the
    SDK's sentence for a conversation that the template refuses, such as one with a system role; text and ids are then
    empty.
    """

    name: str
    messages: list[dict[str, object]]
    tools: list[dict[str, object]] | None = None
    variables: dict[str, object] = {}
    add_generation_prompt: bool = True
    text: str = ""
    ids: list[TokenId] = []
    refusal: str | None = None


class Date(_Plain, frozen=True, kw_only=True):
    """The day that a template prints. ``day`` (YYYY-MM-DD) is the goldens'; where ``policy`` is "pinned", it is the
    day of every prompt for which the application names no other; where it is "passed", the application must name one.
    """

    policy: Literal["pinned", "passed"]
    day: Day


class ToolUse(_Plain, frozen=True, kw_only=True, omit_defaults=True):
    """The template that takes the place of the other where tools are given; fields as those of ``Chat``."""

    roles: list[str]
    goldens: list[Golden]
    parts: list[str] = []
    leading: list[str] = []


class Chat(_Plain, frozen=True, kw_only=True, omit_defaults=True):
    """The template in ``chat_template.jinja``: the roles that it prints, and its date, null where it prints none.

    Of the roles, ``parts`` are those whose content it reads as a list of text parts, ``leading`` those that it prints
    only of the first message. ``tool_use`` is left out where the template is used with tools as well, ``thinking``
    where the model answers without a thought.
    """

    roles: list[str]
    date: Date | None
    goldens: list[Golden]
    parts: list[str] = []
    leading: list[str] = []
    tool_use: ToolUse | None = None
    thinking: Thinking | None = None

    @property
    def features(self) -> list[str]:
        """What a reader must understand of it, among ``FEATURES``."""
        tools = self.tool_use
        used = {
            CHAT_PARTS: self.parts or (tools and tools.parts),
            CHAT_LEADING: self.leading or (tools and tools.leading),
            CHAT_TOOL_USE: tools,
            CHAT_THINKING: self.thinking,
        }
        return [name for name, needed in used.items() if needed]


class Generation(_Plain, frozen=True, kw_only=True):
    """Defaults of generation. A temperature of 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: Count = 256


class Context(_Plain, frozen=True, kw_only=True):
    """Positions: what the source was trained for, what the payloads are written for, what the proof covers."""

    trained: Count
    profile: Count
    verified: Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]
    kv_values_per_token: Size


class Fallback(_Plain, frozen=True, kw_only=True):
    """A tensor that could not take the scheme, what it took instead, and why."""

    tensor: str
    scheme: str
    reason: str


class Quantization(_Plain, frozen=True, kw_only=True):
    """The scheme; ``bits`` are the effective ones: 8 times the bytes of all tensors over the decoder's parameters."""

    asked: str
    scheme: str
    bits: float
    fallbacks: list[Fallback]


class Gate(_Plain, frozen=True, kw_only=True):
    """A figure of the proof and the limit that it was held to."""

    name: str
    value: float
    limit: float
    holds: Literal["<=", ">="]

    @property
    def passes(self) -> bool:
        """Whether the figure meets its limit; NaN meets none."""
        return self.value <= self.limit if self.holds == "<=" else self.value >= self.limit


class Loss(_Plain, frozen=True):
    """What quantisation cost on so many tokens, against the source: means, each with its standard error.

    ``kl``: KL(source || variant) of the next-token distributions, in nats. ``top1``: the share of positions with the
    same likeliest token. ``perplexity``: that of the variant over that of the source.
    """

    tokens: Count
    kl: float
    kl_error: float
    top1: float
    top1_error: float
    perplexity: float
    perplexity_error: float

    @property
    def high(self) -> bool:
        """Whether so much was lost that it shows in answers: ``HIGH_LOSS``."""
        return self.kl > HIGH_LOSS


class Proof(_Plain, frozen=True, kw_only=True):
    """What was measured before the bundle was sealed, with which engine.

    ``gates`` say that the variant is the model, and that the engine computes it; ``loss`` what quantisation cost, on
    "text" and on "random" token ids, or ``vectors`` in a model that embeds. ``against`` names what took the place of
    edgepack's reference, and its version; left out where that is what the variant was compared with.
    """

    engine: str
    tokens: Count
    gates: list[Gate]
    loss: dict[ProbePart, Loss] = {}
    vectors: Nearness | msgspec.UnsetType = msgspec.UNSET
    against: str | msgspec.UnsetType = msgspec.UNSET


class SelfTest(_Plain, frozen=True, kw_only=True):
    """Token ids, and the likeliest next token after each where the margin is safe (elsewhere null)."""

    ids: list[TokenId]
    top1: list[TokenId | None]


class Variant(_Plain, frozen=True, kw_only=True, omit_defaults=True):
    """One payload: what one engine loads. ``proof`` is null when it was built ``--unproven``.
    ``vector_test`` is the self-test of a model that embeds.

    ``kv_cache`` is left out where the runtime chooses the type of the KV cache, or has only one. ``loading_bytes`` are
    those of ``weights_bytes`` that a load needs for a second copy; none in bundles from before there was the field.
    """

    id: PlainName
    target: str
    runtime: str
    floor: str
    kv_cache: KvCache | None = None
    quantization: Quantization
    weights_bytes: Size
    loading_bytes: Size = 0
    files: list[File]
    proof: Proof | None
    self_test: SelfTest | None
    vector_test: VectorTest | None = None


class Manifest(_Plain, frozen=True, kw_only=True, omit_defaults=True):
    """The whole document. ``draft`` is the id of the bundle in its folder ``draft``, a small model that guesses what
    this one says; left out without one. ``embedding`` is there where the model has no head.

    ``sequence`` counts what was released under one name: a device takes no lower one for an update. ``parent`` is the
    id of the bundle that this one was made of, by leaving variants out, adding some, or keeping some warm.
    """

    schema: Schema
    name: str
    version: str
    producer: Producer
    source: Source
    license: License
    decoder: Decoder
    tokenizer: Tokenizer
    stops: list[Stop]
    chat: Chat | None
    generation: Generation
    context: Context
    files: list[File]
    variants: Annotated[list[Variant], msgspec.Meta(max_length=256)]
    draft: Sha256 | None = None
    embedding: Embedding | None = None
    sequence: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] = 0
    parent: Sha256 | None = None


def encode(manifest: Manifest) -> bytes:
    """Return the manifest's bytes: JSON, UTF-8, two-space indent, fields in the order of the types, a final newline."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def decode(data: bytes, place: str = "manifest.json") -> Manifest:
    """Parse and check a manifest.

    Raises ``BundleTooNewError`` for a newer schema or an unknown feature, ``BundleDamagedError`` for anything else
    that the types or the path rules do not allow; the message names the field.
    """
    try:
        form.check(data)
        schema = msgspec.json.decode(data, type=_Head).schema
        if schema.version > VERSION or (unknown := sorted(set(schema.features) - FEATURES)):
            what = f"schema {schema.version}" if schema.version > VERSION else f"the feature {unknown[0]!r}"
            raise BundleTooNewError(
                f"{place} uses {what}; this edgepack reads schemas up to {VERSION}.",
                hint="Upgrade with: pip install -U edgepack",
            )
        manifest = msgspec.json.decode(data if schema.version == VERSION else earlier.upgraded(data), type=Manifest)
        check(manifest.decoder)
        embedding.check(manifest.embedding, manifest.decoder)
    except (ValueError, RecursionError) as error:  # of msgspec, of json, of a text that is not UTF-8
        if isinstance(error, BundleTooNewError):
            raise
        raise BundleDamagedError(f"{place} is not a valid manifest: {error}.", hint="Build the bundle again.") from None
    for owner, files in [("files", manifest.files)] + [(f"variants/{v.id}", v.files) for v in manifest.variants]:
        for file in files:
            form.check_path(file.path, f"{place}: {owner}")
    return manifest


class _Head(msgspec.Struct):
    schema: Schema
