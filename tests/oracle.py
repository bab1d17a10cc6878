"""The independent implementation: transformers in fp32. Imported only where torch and transformers are installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


def load(folder: Path) -> Any:
    """Return transformers' model of a saved checkpoint, in fp32 with eager attention."""
    import torch
    from transformers import AutoConfig

    model = auto_class(folder).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    embedding = model.get_input_embeddings()
    if hasattr(embedding, "embed_scale"):
        # Gemma multiplies by sqrt(hidden) in the type of the weights, which loading in fp32 forgets.
        dtype = AutoConfig.from_pretrained(folder).dtype or torch.float32
        embedding.embed_scale.copy_(embedding.embed_scale.to(dtype))
    return model


def auto_class(folder: Path) -> Any:
    """Return what loads a saved checkpoint: some that also see are not among those that write text alone."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    alone = type(AutoConfig.from_pretrained(folder)) in AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if alone else AutoModelForImageTextToText


def logits(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits of a saved checkpoint: float32 [n, n_vocab]."""
    import torch

    with torch.no_grad():
        result: NDArray[np.float32] = load(folder)(torch.tensor([list(ids)])).logits[0].numpy()
    return result


def states(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the normed states after the last layer of a saved checkpoint without a head: float32 [n, hidden size]."""
    import torch
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        result: NDArray[np.float32] = model(torch.tensor([list(ids)])).last_hidden_state[0].numpy()
    return result


def vector(
    folder: Path,
    text: str,
    pooling: Literal["last", "mean", "first"],
    normalized: bool,
    dense: Sequence[NDArray[np.float32]] = (),
) -> NDArray[np.float32]:
    """Return the vector of a text, float32 [size], by transformers and sentence-transformers' formulas of pooling."""
    import torch
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(folder)(text).input_ids
    found = torch.from_numpy(states(folder, ids))
    pooled = {"last": found[-1], "mean": found.sum(0) / len(ids), "first": found[0]}[pooling]
    for matrix in dense:
        pooled = torch.nn.functional.linear(pooled, torch.from_numpy(matrix))
    result: NDArray[np.float32] = (torch.nn.functional.normalize(pooled, dim=0) if normalized else pooled).numpy()
    return result
