"""``edgepack inspect``: what a bundle says of itself."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgepack.cli import losses, receipts
from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack.cli.screen import as_json, facts, next_step, out, say, styled, table

if TYPE_CHECKING:
    from edgepack.bundle.decoder import Attention, KvCache
    from edgepack.bundle.embedding import Embedding
    from edgepack.bundle.files import Bundle
    from edgepack.bundle.manifest import Fallback, License, Loss, Variant
    from edgepack.bundle.rope import Rope
    from edgepack.bundle.thinking import Thinking

# How an obligation reads whose text is only the words that it is about.
_DUTIES = {"display": "Show to users: {}", "name": "The name of a model made with it begins with: {}"}


@examples("edgepack inspect demo.edgepack")
def inspect(bundle: BundlePath, json: AsJson = False) -> None:
    """Show a bundle's source, licence, model, variants and proof."""
    from edgepack.bundle.files import open_bundle

    opened = open_bundle(bundle, verify="sizes")
    if json:
        as_json(as_mapping(opened))
    else:
        show(opened)
        next_step("edgepack", "plan", str(bundle))


def as_mapping(bundle: Bundle) -> dict[str, Any]:
    """Return the manifest as JSON values, with the bundle's id, whether each variant is proven, the ids of those that
    are not in this copy, its receipt or null, and in the place of the draft's id the same of its bundle."""
    import msgspec

    from edgepack.bundle.receipt import read

    plain: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    for values in plain["variants"]:
        values["proven"] = values["proof"] is not None
    if bundle.draft is not None:
        plain["draft"] = as_mapping(bundle.draft)
    return {"id": bundle.id} | plain | {"absent": list(bundle.absent), "receipt": msgspec.to_builtins(read(bundle))}


def show(bundle: Bundle) -> None:
    """Print a bundle: its facts, its variants, the gates that each was held to, and what it lost."""
    from rich.text import Text

    from edgepack.bundle.receipt import read
    from edgepack.device.memory import human

    console = out()
    manifest = bundle.manifest
    release = f", release {manifest.sequence}" if manifest.sequence else ""
    say(console, Text(f"{manifest.name} {manifest.version}{release}", "bold"))
    console.print(facts([("bundle", bundle.id), *_facts(bundle), *_draft(bundle.draft)]))
    rows = table("variant", "format", "bits", "size", "in memory", "proof", right=("bits", "size", "in memory"))
    for variant in manifest.variants:
        rows.add_row(
            variant.id,
            variant.target,
            f"{variant.quantization.bits:.2f}",
            human(sum(file.size for file in variant.files)),
            human(variant.weights_bytes),
            _verdict(variant),
        )
    console.print()
    console.print(rows)
    if bundle.absent:
        say(console, Text(f"not in this copy: {', '.join(bundle.absent)}", "yellow"))
    gates = table("variant", "gate", "measured", "", "limit", "", right=("measured",))
    for variant in manifest.variants:
        for gate in variant.proof.gates if variant.proof else ():
            held = Text("holds", "green") if gate.passes else Text("FAILS", "bold red")
            gates.add_row(variant.id, Text(gate.name), f"{gate.value:.3g}", gate.holds, f"{gate.limit:.3g}", held)
    if gates.row_count:
        console.print()
        console.print(gates)
    if receipt := read(bundle):
        console.print()
        receipts.show(receipt)
    else:
        _show_loss(manifest.variants)
        _show_nearness(manifest.variants)
    _warn_of_loss(manifest.variants)
    others = [(each.id, line) for each in manifest.variants for line in grouped(each.quantization.fallbacks)]
    if others:
        console.print()
        console.print(facts(others))


def grouped(fallbacks: Iterable[Fallback]) -> Iterator[str]:
    """Yield a sentence for all tensors that took the same scheme for the same reason, by kind and layers."""
    groups: dict[tuple[str, str], dict[str, list[int]]] = {}
    for fallback in fallbacks:
        in_layer = re.fullmatch(r"layers\.(\d+)\.(.+)", fallback.tensor)
        layer, kind = ([int(in_layer[1])], in_layer[2]) if in_layer else ([], fallback.tensor)
        groups.setdefault((fallback.scheme, fallback.reason), {}).setdefault(kind, []).extend(layer)
    for (scheme, reason), kinds in groups.items():
        places: dict[str, list[str]] = {}
        for kind, layers in kinds.items():
            places.setdefault(_in_layers(layers), []).append(kind)
        count = sum(len(layers) or 1 for layers in kinds.values())
        verb = "tensor is" if count == 1 else "tensors are"
        where = "; ".join(", ".join(kinds_there) + place for place, kinds_there in places.items())
        yield f"{count} {verb} {scheme}, because {reason}: {where}"


def _in_layers(layers: Sequence[int]) -> str:
    """Name ascending layers in spans, " in layers 0-3, 7, 9-29", and nothing for what is in none."""
    spans: list[list[int]] = []
    for layer in layers:
        if spans and layer == spans[-1][-1] + 1:
            spans[-1] = [spans[-1][0], layer]
        else:
            spans.append([layer])
    noun = " in layers " if len(layers) > 1 else " in layer " if layers else ""
    return noun + ", ".join("-".join(map(str, span)) for span in spans)


def _verdict(variant: Variant) -> Any:
    from rich.text import Text

    if variant.proof is None:
        return Text("UNPROVEN", "bold yellow")
    failed = [gate.name for gate in variant.proof.gates if not gate.passes]
    if failed:
        return Text(f"FAILS {', '.join(failed)}", "bold red")
    against = f" against {variant.proof.against}, not the reference," if variant.proof.against else ""
    return Text(f"proven{against} on {variant.proof.tokens} tokens, {variant.proof.engine}", "green")


def _show_loss(variants: Sequence[Variant]) -> None:
    """Print what quantisation cost on the probe, each figure with its standard error."""
    from rich.text import Text

    console = out()
    rows = table("variant", "lost on", *losses.COLUMNS)
    found = [(each.id, part, loss) for each in variants if each.proof for part, loss in each.proof.loss.items()]
    for name, part, loss in found:
        rows.add_row(name, part, *loss_cells(loss))
    if found:
        places = {"text": "of text", "random": "at random"}
        counts = dict.fromkeys(f"{loss.tokens} tokens {places[part]}" for _, part, loss in found)
        console.print()
        console.print(rows)
        say(console, Text(f"Lost on {', '.join(counts)}.", "dim"))
    if remark := losses.remark(loss.perplexity for _, _, loss in found):
        say(console, Text(remark, "dim"))


def _show_nearness(variants: Sequence[Variant]) -> None:
    """Print how near the vectors of a variant are to the source's."""
    rows = table("variant", "cosine with the source's vectors", "the least", "texts", right=("texts",))
    for each in variants:
        if each.proof and (near := each.proof.vectors):
            rows.add_row(each.id, f"{near.cosine:.6g}", f"{near.least:.6g}", str(near.texts))
    if rows.row_count:
        out().print()
        out().print(rows)


def _warn_of_loss(variants: Sequence[Variant]) -> None:
    """Say where a variant lost so much that it shows."""
    for variant in variants:
        if variant.proof and (text := variant.proof.loss.get("text")) and text.high:
            warning = f"{variant.id} lost {text.kl:.2g} nats on text, which shows in its answers. More bits lose less."
            say(out(), styled("yellow", warning))


def loss_cells(loss: Loss) -> tuple[str, str, str]:
    """Return what stands under ``losses.COLUMNS`` of what a proof measured."""
    kl, top1, ratio = (loss.kl, loss.kl_error), (loss.top1, loss.top1_error), (loss.perplexity, loss.perplexity_error)
    return losses.cells(kl, top1, ratio)


def _facts(bundle: Bundle) -> Iterator[tuple[str, str]]:
    from edgepack.device.memory import human, kv_bytes

    manifest = bundle.manifest
    source, decoder, context = manifest.source, manifest.decoder, manifest.context
    revision = f" at {source.revision}" if source.revision else ""
    paths = [file.path for file in source.files]
    kind = "a local folder"
    if all(path.lower().endswith(".gguf") for path in paths):
        kind = f"a GGUF file in {len(paths)} parts" if len(paths) > 1 else "a GGUF file"
    yield "source", f"{source.repository}{revision}" if source.repository else f"{source.name} ({kind})"
    yield from _licence(manifest.license)
    yield (
        "model",
        (
            f"{decoder.architecture}: {decoder.n_parameters / 1e6:,.1f} M parameters, {decoder.n_layers} layers, "
            f"hidden {decoder.hidden_size}, {' or '.join(dict.fromkeys(map(_heads, decoder.attentions)))}, "
            f"vocabulary {decoder.n_vocab}, {'tied' if decoder.tied else 'untied'}"
        ),
    )
    if decoder.exported:
        what = "wrote the graph" if decoder.exported.graph else "has the model's code"
        yield "exported", f"by {decoder.exported.exporter}, which {what}: edgepack does not describe it"
    else:
        yield (
            "attention",
            "; then ".join(dict.fromkeys(_attention(each, decoder.context) for each in decoder.attentions)),
        )
    if shared := len(decoder.attending) - len(decoder.keeping):
        yield "", f"the last {shared} layers read keys and values of earlier ones"
    if decoder.inputs:
        yield "inputs", f"{decoder.inputs} numbers of each token's own a layer"
    if convolving := decoder.convolving:
        lengths = " or ".join(sorted({str(each.length) for each in convolving.values()}))
        yield "convolution", f"{len(convolving)} of {decoder.n_layers} layers, over {lengths} positions"
    if correcting := decoder.correcting:
        heads = " or ".join(
            dict.fromkeys(f"{each.n_value_heads} heads of {each.value_dim}" for each in correcting.values())
        )
        yield "delta rule", f"{len(correcting)} of {decoder.n_layers} layers, {heads}"
    verified = f"{context.verified} verified" if context.verified else "UNPROVEN"
    kv_cache: KvCache = "f32" if decoder.exported else "f16"
    kept = f"KV cache {human(kv_bytes(decoder, 'gguf', kv_cache, 1))} a token in {kv_cache}"
    yield (
        "context",
        (
            f"{context.trained} trained, {context.profile} packed for, {verified}; "
            f"{'no KV cache, as a text is evaluated at once' if decoder.at_once else kept}"
        ),
    )
    if (embedding := manifest.embedding) is not None:
        yield "embeds", _embedding(embedding)
    stops = ", ".join(repr(stop.text) for stop in manifest.stops) or "none"
    if manifest.chat is None and embedding is None:
        yield "chat", f"no template; stops at {stops}"
    elif manifest.chat is not None:
        date = f", dated {manifest.chat.date.day} ({manifest.chat.date.policy})" if manifest.chat.date else ""
        tools = "; tools by a template of their own" if manifest.chat.tool_use else ""
        yield "chat", f"{', '.join(manifest.chat.roles)}{date}{tools}; stops at {stops}"
        if manifest.chat.thinking is not None:
            yield "thinking", _thinking(manifest.chat.thinking)
        yield from _tools(bundle)
    g = manifest.generation
    if embedding is None:
        yield (
            "defaults",
            f"temperature {g.temperature:g}, top-p {g.top_p:g}, top-k {g.top_k}, min-p {g.min_p:g}, "
            f"repetition penalty {g.repetition_penalty:g}, at most {g.max_tokens} tokens",
        )
    packages = ", ".join(f"{name} {version}" for name, version in manifest.producer.packages.items())
    yield "made by", f"edgepack {manifest.producer.edgepack}{f' with {packages}' if packages else ''}"
    notes = manifest.producer.recipe.get("notes")
    yield from (("note", note) for note in (notes if isinstance(notes, list) else ()))


def _embedding(embedding: Embedding) -> str:
    """Say what is made of a text, and the prompts that may stand before it."""
    of = {"last": "the last token's state", "mean": "the mean of all states", "first": "the first token's state"}
    length = ", of length 1" if embedding.normalized else ""
    names = ", ".join(
        f"{name} (unless told otherwise)" if name == embedding.default_prompt else name for name in embedding.prompts
    )
    prompts = f"; prompts: {names}" if names else "; no prompts"
    return f"{embedding.size} numbers, {of[embedding.pooling]}{length}, compared by {embedding.similarity}{prompts}"


def _tools(bundle: Bundle) -> Iterator[tuple[str, str]]:
    """Say whether a model's template teaches it to call tools, and how; nothing where it cannot be read."""
    from edgepack.errors import EdgepackError
    from edgepack.text.opening import template_of
    from edgepack.text.tool_formats import named

    with suppress(EdgepackError):
        if (template := template_of(bundle)) is not None:
            form = named(template.for_tools.source)
            yield "tools", f"called in the form of {form} (--tools)" if form else "none"


def _thinking(known: Thinking) -> str:
    """Say when a model thinks, and between which marks."""
    way = "always" if known.default else "never"
    if known.switch is not None:
        way = "unless told not to (--no-think)" if known.default else "when told to (--think)"
    return f"{way}, between {known.opening!r} and {known.closing!r}"


def _draft(draft: Bundle | None) -> Iterator[tuple[str, str]]:
    if draft is None:
        return
    from edgepack.device.memory import human

    manifest = draft.manifest
    size = f"{manifest.decoder.n_parameters / 1e6:,.1f} M parameters, {human(draft.size())}"
    yield "draft", f"{manifest.name}: {size} in {', '.join(v.id for v in manifest.variants)}"
    yield from (("", line) for _, line in _licence(manifest.license))


def _licence(terms: License) -> Iterator[tuple[str, str]]:
    texts = f" ({', '.join(terms.files)})" if terms.files else ""
    states = ", accepted by the builder" * terms.accepted + ", gated by its host" * terms.gated
    yield "licence", f"{terms.id}{texts}{states}"
    if terms.notice:
        yield "", f"Every copy carries: {terms.notice}"
    for obligation in terms.obligations:
        place = f" {obligation.url}" if obligation.url else ""
        yield "", _DUTIES.get(obligation.kind, "{}").format(obligation.text) + place


def _heads(attention: Attention) -> str:
    return f"{attention.n_heads} heads ({attention.n_kv_heads} KV) of {attention.head_dim}"


def _attention(attention: Attention, context: int) -> str:
    window = f", window {attention.window}" if attention.window else ""
    if attention.rope is None:
        return f"no rope{window}"
    return f"rope theta {attention.rope.theta:g}{_scaling(attention.rope, context)}{window}"


def _scaling(rope: Rope, context: int) -> str:
    from edgepack.bundle.rope import LongRopeScaling, ProportionalScaling

    match scaling := rope.scaling:
        case None:
            return ""
        case LongRopeScaling(original_context=original):
            return f", longrope with the {'long' if context > original else 'short'} factors throughout"
        case ProportionalScaling(turned):
            return f" on {turned} of {rope.dim // 2} pairs"
        case _:
            return f", {type(scaling).__name__.removesuffix('Scaling').lower()} factor {scaling.factor:g}"
