"""From a checked file to a session: the engine's parameters, and why each differs from its default."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final, get_args

from edgepack import snapshot
from edgepack.admission import check_sequences
from edgepack.bundle.decoder import Decoder
from edgepack.device.memory import Q8_BLOCK, ROOM, cells_of
from edgepack.errors import EngineError, UsageError
from edgepack.runtime import KvCache, Options
from edgepack_runtimes.gguf import abi, header, log, own, repacked
from edgepack_runtimes.gguf.check import check
from edgepack_runtimes.gguf.hidden import AtOnceSession, HiddenSession
from edgepack_runtimes.gguf.library import BUILD, Library
from edgepack_runtimes.gguf.native import Native
from edgepack_runtimes.gguf.parallel import ParallelSession
from edgepack_runtimes.gguf.placement import device_of
from edgepack_runtimes.gguf.ring import Ring
from edgepack_runtimes.gguf.session import GgufSession
from edgepack_runtimes.gguf.stepping import OUTPUTS
from edgepack_runtimes.marks import Marks
from edgepack_runtimes.threads import Threads, Watch

_REPACKED: Final = frozenset({"q4_0"})
"""Types whose weights the engine may rearrange at load for this processor, at the price of a second copy in memory,
where ``Options.repack`` leaves it to this runtime.

Measured on one x86-64 core with AVX2 (a model of 215M weights, 1024 tokens of prefill, then decode): q4_0 gains 20 %
in prefill and 33 % in decode; q4_K loses 8 % in prefill and gains 25 % in decode, and stays mapped so that the pages
of the file are all the memory that its weights need; q8_0 and f16 have no such form there.
"""


def open_session(library: Library, path: Path, decoder: Decoder, options: Options) -> GgufSession | ParallelSession:
    """Load the file and make its context. Raises ``EngineError`` with the engine's own reason."""
    _check_options(options, decoder, library)
    watch = Watch()
    parsed, states = header.read(path), bool(decoder.headless)
    architecture = check(parsed, decoder, path)
    native = library.native
    chunk = options.context if decoder.at_once else min(options.chunk, options.context)
    repack = _repack(library, parsed, options.repack)
    params = _model_params(library, architecture, decoder, repack=repack)
    with log.errors() as errors, log.lines() as lines:
        model = native.llama_model_load_from_file(os.fsencode(path), params)
        if not model:
            raise _failed(f"llama.cpp cannot load {path}", errors)
        try:
            ring = _ring(decoder, options)
            settings = _context_params(library, decoder, options, chunk, rolls=ring is not None)
            context = native.llama_init_from_model(model, settings)
            if not context:
                raise _failed(f"llama.cpp cannot make a context of {options.context} tokens for {path}", errors)
        except BaseException:
            native.llama_model_free(model)
            raise
    n_vocab = native.llama_vocab_n_tokens(native.llama_model_get_vocab(model))
    room = chunk + options.sequences if options.sequences > 1 else chunk
    handle = Native(
        library,
        model,
        context,
        decoder.outputs,
        room,
        options.threads,
        states=states,
        sequences=options.sequences,
    )
    if n_vocab != decoder.n_vocab:
        handle.free()
        raise EngineError(f"llama.cpp reads a vocabulary of {n_vocab} from {path}, the model's is {decoder.n_vocab}.")
    device = device_of(lines, library.accelerators(), decoder.n_layers)
    # Where it was said what threads do while they wait, they stay as many as they are; and one always does.
    threads = None
    if options.spin is None and options.threads > 1:
        threads = Threads(options.threads, watch.free, asleep=own.ASLEEP if library.pools else 0.0)
    if options.sequences > 1:
        return ParallelSession(
            handle,
            path=path,
            device=device,
            n_vocab=n_vocab,
            context=options.context,
            chunk=chunk,
            threads=threads,
            spin=options.spin,
            states=bool(decoder.states),
        )
    facts = snapshot.facts(library.version, decoder, options.kv_cache)
    facts["windows"] = "whole" if ring is None else f"in {ring.cells} cells"
    return _kind(decoder)(
        handle,
        path=path,
        device=device,
        facts=facts,
        n_vocab=n_vocab,
        context=options.context,
        chunk=chunk,
        ring=ring,
        marks=Marks() if decoder.states else None,
        threads=threads,
        spin=options.spin,
    )


def _kind(decoder: Decoder) -> type[GgufSession]:
    if decoder.at_once:
        return AtOnceSession
    return HiddenSession if decoder.headless else GgufSession


def _check_options(options: Options, decoder: Decoder, library: Library) -> None:
    for name, value in (("context", options.context), ("threads", options.threads), ("chunk", options.chunk)):
        if not 1 <= value < 1 << 31:
            raise UsageError(f"{name} is {value}, it must be a positive 32-bit integer.")
    check_sequences(options.sequences, headless=bool(decoder.headless))
    if options.repack not in (None, True, False):
        raise UsageError(f"repack is {options.repack!r}.", hint="It is True, False or None.")
    if options.spin is not None and library.pools is None:
        raise UsageError(
            f"The runtime gguf cannot be told spin={options.spin}: OpenMP decides when its threads sleep.",
            hint=f"Use an engine of your own: {BUILD}",
        )
    if options.spin is False and not own.CAN_SLEEP:
        raise UsageError("The threads of gguf spin on this system.", hint="Leave spin out.")
    if options.kv_cache not in get_args(KvCache):
        raise UsageError(f"kv_cache is {options.kv_cache!r}.", hint=f"Choose one of {', '.join(get_args(KvCache))}.")
    odd = [attention.head_dim for attention in decoder.attentions if attention.head_dim % Q8_BLOCK["gguf"]]
    if options.kv_cache == "q8" and odd:
        raise UsageError(
            f"A KV cache of q8 has blocks of {Q8_BLOCK['gguf']} values, a head of {odd[0]} is none.",
            hint="Ask for kv_cache=f16.",
        )


def _repack(library: Library, parsed: header.Header, asked: bool | None) -> bool:
    """Return whether weights are rearranged: as asked, or by rule where the engine can. Raises ``UsageError`` where it
    is asked to and cannot."""
    wanted = header.main_type(parsed) in _REPACKED if asked is None else asked
    if not wanted or not (reason := repacked.reason(library.engine)):
        return wanted
    if asked:
        raise UsageError(reason, hint="Leave repack out, or give repack=False: the weights are then used as stored.")
    return False


def _model_params(library: Library, architecture: str, decoder: Decoder, *, repack: bool) -> abi.ModelParams:
    params: abi.ModelParams = library.native.llama_model_default_params()
    params.n_gpu_layers = -1 if library.devices() != ("cpu",) else 0
    params.load_mode = abi.LOAD_MODE_MMAP
    params.use_extra_bufts = repack
    # The seam carries token ids, so the engine's own tokenizer would only cost: half a second and 60 MB at a
    # vocabulary of 128k, and a refusal where it does not know the pre-tokenizer.
    overrides = (abi.KeyOverride * 3)()
    overrides[0].tag = abi.OVERRIDE_STRING
    overrides[0].key = b"tokenizer.ggml.model"
    overrides[0].value.string = b"no_vocab"
    overrides[1].tag = abi.OVERRIDE_INT
    overrides[1].key = f"{architecture}.vocab_size".encode()
    overrides[1].value.integer = decoder.n_vocab
    params.kv_overrides = overrides
    return params


def _ring(decoder: Decoder, options: Options) -> Ring | None:
    """Return the ring that layers with a window share, None where their cache holds the context whole, or nothing."""
    if decoder.at_once or options.sequences > 1:
        return None
    for window in decoder.windows:  # llama.cpp has one
        cells = cells_of("gguf", options, window)
        if cells < cells_of("gguf", options, None):
            return Ring(window, cells)
    return None


def _context_params(
    library: Library, decoder: Decoder, options: Options, chunk: int, *, rolls: bool
) -> ctypes.Structure:
    params: ctypes.Structure = library.native.llama_context_default_params()
    kv_cache: KvCache = "f32" if decoder.at_once else options.kv_cache  # of a cache that is not there
    fields = {
        "n_ctx": options.context,
        "n_batch": chunk,
        "n_ubatch": chunk,
        "n_outputs_max": chunk if decoder.at_once else min(chunk, OUTPUTS),
        "n_outputs_max_per_seq": 0,  # all of them
        "n_threads": options.threads,
        "n_threads_batch": options.threads,
        "type_k": abi.GGML_TYPE_IDS[kv_cache],
        "type_v": abi.GGML_TYPE_IDS[kv_cache],
        # It rounds to f16 inside: NMSE 1e-7 even with an f32 cache, against 1e-12 without. With an f16 cache it gains
        # 15 % of prefill and costs 21 % of decode after 1024 tokens (the same model and processor as above), half of it
        # after 4096. Values of 8 bits have no other way, and lose no speed by it.
        "flash_attn_type": abi.FLASH_ATTENTION_ENABLED if kv_cache == "q8" else abi.FLASH_ATTENTION_DISABLED,
        "swa_full": not rolls,
        "no_perf": True,
    }
    if decoder.headless:
        fields |= {"embeddings": True, "pooling_type": abi.POOLING_NONE}
    if rolls:
        # The cells of a layer with a window are one window for each sequence, and a step (llama_kv_cache_iswa). With
        # room for a second one that never comes, tokens can be taken back.
        fields |= {"n_seq_max": ROOM, "kv_unified": True, "n_outputs_max": max(ROOM, fields["n_outputs_max"])}
    if (count := options.sequences) > 1:
        # Cells of their own for each, so that attention reads no others': of 8 texts of 100 tokens a chunk takes half
        # the time. But states are computed together only of sequences that follow each other, or in shared cells.
        fields |= {
            "n_ctx": count * cells_of("gguf", options, None),
            "n_batch": chunk + count,
            "n_ubatch": chunk + count,
            "n_outputs_max": min(chunk, OUTPUTS) + count,
            "n_seq_max": count,
            "kv_unified": bool(decoder.states),
        }
    for name, value in fields.items():
        setattr(params, name, value)
    return params


def _failed(what: str, errors: list[str]) -> EngineError:
    telling = [line for line in errors if not line.endswith("failed to load model")]
    reason = "; ".join(telling[-2:]) or "the engine gave no reason"
    return EngineError(f"{what}: {reason}.", hint="Verify the bundle, or free memory.")
