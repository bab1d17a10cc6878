"""A build of a model that embeds: what its source says beside config.json, and what such a build has no use for."""

from __future__ import annotations

from dataclasses import replace

from msgspec.structs import replace as with_fields

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.embedding import DENSE_FILE, Embedding
from edgepack.errors import UnsupportedModelError, UsageError
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import families
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import Source
from edgepack_packager.targets import Model
from edgepack_packager.text import embedded, sentence_transformers
from edgepack_packager.text.sentence_transformers import MODULES
from edgepack_packager.text.side import Text


def described(model: Model, origin: Source, recipe: Recipe) -> Decoder:
    """Return the decoder of a model: without its head where the source says that it embeds, else as it is.

    It is for no more tokens than sentence-transformers would read of a text. Raises ``UnsupportedModelError`` for what
    is not built, ``UsageError`` for what the recipe asks of such a model in vain.
    """
    config, decoder = model.config, model.decoder
    if not sentence_transformers.found(origin.folder):
        names = config.get("architectures") or []
        if bare := next((name for name in names if name.endswith("Model")), None):
            raise UnsupportedModelError(
                f"config.json: architectures names {bare}, which has no head, and {MODULES} is not there.",
                hint="It says what is made of the states: fetch the files of sentence-transformers as well.",
            )
        return decoder
    for field in ("auto_map", "is_causal"):
        if config.get(field) not in (None, True):
            raise UnsupportedModelError(
                f"config.json: {field} is {config[field]!r}, so that its tokens may see more than those before them.",
                hint="edgepack builds such a model where its class says so, and runs no code of a repository.",
            )
    _refuse_others(recipe)
    limit = sentence_transformers.longest(origin.folder)
    if limit is not None and limit < decoder.context:
        if recipe.context is not None and recipe.context > limit:
            raise UsageError(
                f"--context {recipe.context} was given, and {sentence_transformers.TRANSFORMER} allows {limit} tokens.",
                hint="Leave it out, or give less.",
            )
        decoder = families.describe(config, limit)
    return families.without_head(decoder)


def refuse_export(origin: Source) -> None:
    """Raise ``UsageError`` for a source that embeds: exporters are held to the logits of a model that writes."""
    if sentence_transformers.found(origin.folder):
        raise UsageError(
            f"--exporter was given for a model that embeds, by {MODULES}: exporters write models that write.",
            hint="Leave it out.",
        )


def read(origin: Source, decoder: Decoder, text: Text, tokenizer: Tokenizer) -> tuple[Embedding, Text]:
    """Return what is made of a text, with the ids that the source's own tokenizer gives, and the text side with what
    that takes. Raises as its two parts."""
    found, dense = sentence_transformers.read(origin.folder, decoder.hidden_size, text.ends)
    if dense:
        matrices = b"".join(each.astype("<f4").tobytes() for each in dense)
        text = replace(text, files={**text.files, DENSE_FILE: matrices})
    return with_fields(found, probes=embedded.probes(text, tokenizer, found)), text


def _refuse_others(recipe: Recipe) -> None:
    """Refuse what measures the next tokens of a text, or guesses them."""
    asked = {
        "--calibrate": recipe.calibrate,
        "--quality calibrated": recipe.quality == "calibrated",
        "--draft": recipe.draft,
        "--max-kl": recipe.max_kl is not None,
        "--receipt": recipe.receipt,
        "--recipe": recipe.table,
        "--thinks": recipe.thinks,
        "a goal for the bits": any(map(recipe.goal, recipe.quants)),
    }
    if option := next((option for option, given in asked.items() if given), None):
        raise UsageError(
            f"{option} was given for a model that embeds, which says no next token to measure it by.",
            hint="Leave it out.",
        )
