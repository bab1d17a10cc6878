"""The independent implementation: transformers in fp32. Imported only where torch and transformers are installed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def logits(folder: Path, ids: Sequence[int]) -> NDArray[np.float32]:
    """Return the logits of a saved checkpoint, loaded in fp32 with eager attention: float32 [n, n_vocab]."""
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        result: NDArray[np.float32] = model(torch.tensor([list(ids)])).logits[0].numpy()
    return result
