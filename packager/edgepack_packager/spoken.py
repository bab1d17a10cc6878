"""A build whose model writes the text that it is calibrated with.

The reference keeps no keys and values, so an engine writes: a variant of 8 bits, in a bundle that is gone when the text
is there. Engines round otherwise on other hosts, and so the text itself is kept with the bundle: it calibrates alike.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from shutil import rmtree

from edgepack.errors import ContextError, EngineError
from edgepack.loading import load
from edgepack_packager import calibration, seal
from edgepack_packager.calibration import dictation
from edgepack_packager.calibration.text import BUILT_IN, Corpus
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.prepare import Prepared
from edgepack_packager.progress import Progress
from edgepack_packager.proof import held_out
from edgepack_packager.proof.prover import Verdict
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write


def written(
    ready: Prepared, speaker: Request, weights: Weights, model: Model, scratch: Path, progress: Progress
) -> Prepared:
    """Return the build with the text that its model wrote through the variant ``speaker``, and that text's passes.

    Raises ``EngineError`` or ``ContextError`` where the variant cannot run here, and ``SourceError`` as
    ``dictation.dictate``, or for a text that has what is held out.
    """
    bundle = scratch / "speaker"
    _seal(ready, speaker, weights, model, bundle, progress)
    context = weights.decoder.context
    tokens = calibration.size(context)
    progress.stage("Writing the text that calibrates", tokens)
    try:
        corpus = _dictated(bundle, min(context, dictation.CONTEXT), tokens, progress)
    except (EngineError, ContextError) as error:
        error.hint = f"Give --calibrate a text, or take --calibrate {BUILT_IN}."
        raise
    rmtree(bundle)
    told = calibration.told(corpus, ready.tokenizer, seal.text_of(model), ready.vectors.chat)
    if ready.held_out is not None:
        held_out.refuse_shared(ready.held_out.corpus, ready.held_out.ids, corpus, told)
    return replace(ready, corpus=corpus, passes=calibration.passes(corpus, told, context))


def _seal(ready: Prepared, speaker: Request, weights: Weights, model: Model, bundle: Path, progress: Progress) -> None:
    """Seal the variant in a bundle of its own; nobody else opens it, so nothing is proven."""
    progress.stage(f"Writing {speaker.id}, which writes the text", weights.decoder.n_parameters)
    done = write(weights, [speaker], bundle / seal.VARIANTS, model, progress.advance)
    recipe = Recipe((speaker.target.name,), (speaker.scheme,), unproven=True)
    recipe = replace(recipe, accept_licence=ready.recipe.accept_licence)
    parts = [seal.Part(speaker, done[0], Verdict(None, None, {}))]
    seal.seal(bundle, ready.origin, [], model, ready.vectors, recipe, parts)


def _dictated(bundle: Path, context: int, tokens: int, progress: Progress) -> Corpus:
    # A process of its own: an engine that ends ends that one, and its threads do not spin beside what comes next.
    with load(bundle, context=context, isolate=True, verify="always") as model:
        return dictation.dictate(model, tokens, progress.advance)
