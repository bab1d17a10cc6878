"""One run of one contender of ``peers.py``, in a process of its own: load, a first token, a prompt, an answer.

    python peers_worker.py CONTENDER FILES THREADS PROMPT ANSWER

Prints JSON: which ``engine`` ran, the CPU seconds from the process's start to the first token after a prompt of one
token (``cold_cpu_s``), and the seconds of the prompt (``prefill_s``) and of each further token (``token_s``). What a
contender needs is imported where it is asked for, so that each may live in an environment of its own.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from itertools import islice
from pathlib import Path

Times = tuple[float, float]
"""Seconds of a prompt, and of each token after the first."""

Answer = Callable[[Sequence[int], int], Times]
"""Evaluates a prompt in an empty cache and continues it greedily for so many tokens."""


def prompt_ids(count: int) -> list[int]:
    """Return ids that every vocabulary has, the same for every contender."""
    return [300 + 37 * i % 700 for i in range(count)]


def timed(start: Callable[[Sequence[int]], Iterator[object]]) -> Answer:
    """Return an ``Answer`` from what yields token after token."""

    def answer(ids: Sequence[int], count: int) -> Times:
        began = time.perf_counter()
        tokens = start(ids)
        next(tokens)
        first = time.perf_counter()
        for _ in islice(tokens, count - 1):
            pass
        return first - began, (time.perf_counter() - first) / max(count - 1, 1)

    return answer


def edgepack(files: str, threads: int, context: int, backend: str | None) -> tuple[str, Answer]:
    """A bundle through the SDK, its checks included; without a backend, what the plan chooses."""
    from dataclasses import replace

    import edgepack

    model = edgepack.load(files, backend, context, threads=threads)
    asked = model.generate("x", max_tokens=1)

    def answer(ids: Sequence[int], count: int) -> Times:
        repro = replace(asked.repro, prompt_ids=tuple(ids), max_tokens=count, cached=(), prompt_lookup=False)
        result = model._repeat(repro, asked.sampling)
        times, made = result.timings, result.usage.completion_tokens
        if made < count or times.prefill_tps is None:
            raise SystemExit(f"The model ended its answer after {made} tokens.")
        return len(ids) / times.prefill_tps, 1 / (times.decode_tps or float("inf"))

    return f"{model.variant.id}, {model.setup.engine}", answer


def llama_cpp_python(files: str, threads: int, context: int) -> tuple[str, Answer]:
    """A GGUF file by llama-cpp-python, as its documentation loads one."""
    from llama_cpp import Llama

    model = Llama(files, n_ctx=context, n_threads=threads, n_threads_batch=threads, verbose=False)

    def start(ids: Sequence[int]) -> Iterator[int]:
        model.reset()
        yield from model.generate(list(ids), top_k=1)

    return f"llama-cpp-python {version('llama-cpp-python')}", timed(start)


def genai(files: str, threads: int, context: int) -> tuple[str, Answer]:
    """An ONNX payload by onnxruntime-genai."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import numpy as np
    import onnxruntime_genai

    config = onnxruntime_genai.Config(files)
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = onnxruntime_genai.Model(config)

    def start(ids: Sequence[int]) -> Iterator[int]:
        options = onnxruntime_genai.GeneratorParams(model)
        options.set_search_options(max_length=context, do_sample=False)
        generator = onnxruntime_genai.Generator(model, options)
        generator.append_tokens(np.array(ids, np.int32))
        while True:
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    return f"onnxruntime-genai {version('onnxruntime-genai')}", timed(start)


def transformers(files: str, threads: int, context: int) -> tuple[str, Answer]:
    """A checkpoint in bf16 by transformers."""
    import torch
    from transformers import AutoModelForCausalLM

    del context
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(files, dtype=torch.bfloat16)

    def start(ids: Sequence[int]) -> Iterator[int]:
        tokens, cache = torch.tensor([list(ids)]), None
        with torch.inference_mode():
            while True:
                out = model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
                tokens, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                yield int(tokens)

    return f"transformers {version('transformers')}, bf16", timed(start)


CONTENDERS: dict[str, Callable[[str, int, int], tuple[str, Answer]]] = {
    "edgepack": lambda files, threads, context: edgepack(files, threads, context, None),
    "edgepack gguf": lambda files, threads, context: edgepack(files, threads, context, "gguf"),
    "edgepack onnx": lambda files, threads, context: edgepack(files, threads, context, "onnx"),
    "llama-cpp-python": llama_cpp_python,
    "onnxruntime-genai": genai,
    "transformers": transformers,
}


def main() -> None:
    """Do the run that the arguments name, and print what it took."""
    name, files, *numbers = sys.argv[1:]
    threads, prompt, count = (int(each) for each in numbers)
    engine, answer = CONTENDERS[name](str(Path(files)), threads, prompt + count + 8)
    answer(prompt_ids(1), 1)
    cold = time.process_time()
    prefill_s, token_s = answer(prompt_ids(prompt), count)
    print(json.dumps({"engine": engine, "cold_cpu_s": cold, "prefill_s": prefill_s, "token_s": token_s}))


if __name__ == "__main__":
    main()
