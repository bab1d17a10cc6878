"""Whether what a build will make can run on this machine, told before anything large is fetched or written.

It asks the plan that a device makes when it opens a bundle, about a bundle of which nothing is there but its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edgepack.bundle import manifest as manifests
from edgepack.bundle.manifest import Manifest, Variant
from edgepack.device.hardware import Hardware
from edgepack.device.planning import make_plan
from edgepack.errors import EdgepackError
from edgepack.runtime import Support
from edgepack_packager.targets import Model, Request


def obstacle(
    model: Model, requests: Sequence[Request], hardware: Hardware, supports: Mapping[str, Support]
) -> str | None:
    """Return why no variant of the requests would be chosen on a machine, in the plan's words; None where one would.

    ``supports`` maps a runtime's name to what it said of itself, as for ``make_plan``.
    """
    try:
        make_plan(_sketch(model, requests), hardware, supports).choice  # noqa: B018 - what it raises is the answer
    except EdgepackError as error:
        return str(error)
    return None


def _sketch(model: Model, requests: Sequence[Request]) -> Manifest:
    """Return the manifest as far as a plan reads it; all else is empty."""
    decoder = model.decoder
    return Manifest(
        schema=manifests.Schema(manifests.VERSION),
        name=model.name,
        version="",
        producer=manifests.Producer(edgepack="", packages={}, recipe={}),
        source=manifests.Source(name=model.name, repository=None, revision=None, files=[]),
        license=manifests.License(id="", files=[]),
        decoder=decoder,
        tokenizer=manifests.Tokenizer(rows=decoder.n_vocab, bos=None, add_bos=False, probes=[]),
        stops=[],
        chat=None,
        generation=manifests.Generation(),
        context=manifests.Context(
            trained=decoder.trained_context,
            profile=decoder.context,
            verified=0,
            kv_values_per_token=decoder.kv_values_per_token,
        ),
        files=[],
        variants=[_variant(model, request) for request in requests],
    )


def _variant(model: Model, request: Request) -> Variant:
    target, written = request.target, request.measure(model.decoder, model.dtype)
    return Variant(
        id=request.id,
        target=target.name,
        runtime=target.runtime,
        floor=target.floor(model.decoder),
        kv_cache=target.kv_cache,
        quantization=manifests.Quantization(
            asked=request.asked, scheme=request.scheme, bits=written.bits(model.decoder), fallbacks=[]
        ),
        weights_bytes=written.weights_bytes,
        loading_bytes=written.loading_bytes,
        files=[],
        proof=None,
        self_test=None,
    )
