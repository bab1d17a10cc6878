"""The reference, and what is read of the files, against transformers and sentence-transformers, recomputed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from embedding_models import MODELS, TEXTS, hidden_size
from variants import nmse

from edgepack.pooling import pooled
from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.text import sentence_transformers

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    import oracle

    folder = MODELS[name](tmp_path)
    ids = [int(i) for i in np.random.default_rng(0).integers(0, 384, 300)]
    with open_checkpoint(folder) as checkpoint:
        found = reference.hidden(families.open_model(checkpoint, headless=True), ids)[0]
    assert nmse(found, oracle.states(folder, ids)) <= 1e-10


@pytest.mark.parametrize("name", MODELS)
def test_vectors_are_those_of_sentence_transformers(name: str, tmp_path: Path) -> None:
    """Of the checkpoint as it was made, and as sentence-transformers saves it again."""
    from tokenizers import Tokenizer

    library = pytest.importorskip("sentence_transformers")
    folder, saved = MODELS[name](tmp_path / "source"), tmp_path / "saved"
    options = {"attn_implementation": "eager", "dtype": "float32"}
    model = library.SentenceTransformer(str(folder), device="cpu", model_kwargs=options)
    model.save_pretrained(str(saved))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    for place in (folder, saved):
        said, dense = sentence_transformers.read(place, hidden_size(folder), ())
        assert sentence_transformers.longest(place) in (None, 512)
        with open_checkpoint(place) as checkpoint:
            weights = families.open_model(checkpoint, headless=True)
            for prompt in ("", *said.prompts.values()):
                states = [reference.hidden(weights, tokenizer.encode(prompt + text).ids)[0] for text in TEXTS]
                expected = model.encode(list(TEXTS), prompt=prompt, batch_size=1)
                assert nmse(np.stack([pooled(said, one, dense) for one in states]), expected) <= 1e-10
