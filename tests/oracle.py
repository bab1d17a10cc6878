"""The independent implementation: transformers in fp32. Imported only where torch and transformers are installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
