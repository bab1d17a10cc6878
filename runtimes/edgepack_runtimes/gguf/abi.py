"""The C interface of llama.cpp as far as this runtime uses it: struct layouts, constants, function signatures.

A layout holds for the exact builds that ``library`` names. Written from llama.h and ggml.h of those builds; the
selfcheck proves it on the machine before a session relies on it.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    Union,
    c_bool,
    c_char,
    c_char_p,
    c_float,
    c_int,
    c_int8,
    c_int32,
    c_int64,
    c_size_t,
    c_uint32,
    c_void_p,
)
from typing import Final

GGML_TYPE_IDS: Final = {"f32": 0, "f16": 1, "q8": 8}
"""Element types of the KV cache: enum ggml_type. That of 8 bits is q8_0."""

LOAD_MODE_MMAP: Final = 1
FLASH_ATTENTION_DISABLED: Final = 0
FLASH_ATTENTION_ENABLED: Final = 1
OVERRIDE_INT: Final = 0
OVERRIDE_STRING: Final = 3
DEVICE_CPU: Final = 0
DEVICE_GPU: Final = 1
DEVICE_INTEGRATED_GPU: Final = 2

STATE_OF_ALL: Final = 0
STATE_OF_THE_REST: Final = 1  # LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY: windows, and what is no keys and values

DECODED: Final = 0
CONTEXT_FULL: Final = 1
ABORTED: Final = 2

POOLING_NONE: Final = 0  # LLAMA_POOLING_TYPE_NONE


class OverrideValue(Union):
    """The union in struct llama_model_kv_override."""

    _fields_ = (("integer", c_int64), ("string", c_char * 128))


class KeyOverride(Structure):
    """struct llama_model_kv_override; an array of them ends at an empty key."""

    _fields_ = (("tag", c_int), ("key", c_char * 128), ("value", OverrideValue))


class ModelParams(Structure):
    """struct llama_model_params."""

    _fields_ = (
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int),
        ("load_mode", c_int),
        ("lazy_mode", c_int),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", POINTER(KeyOverride)),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    )


_CONTEXT_HEAD: Final = (
    ("n_ctx", c_uint32),
    ("n_batch", c_uint32),
    ("n_ubatch", c_uint32),
    ("n_seq_max", c_uint32),
    ("n_rs_seq", c_uint32),
    ("n_outputs_max", c_uint32),
    ("n_outputs_max_per_seq", c_uint32),
    ("n_threads", c_int32),
    ("n_threads_batch", c_int32),
    ("ctx_type", c_int),
    ("rope_scaling_type", c_int),
    ("pooling_type", c_int),
    ("attention_type", c_int),
    ("flash_attn_type", c_int),
    ("rope_freq_base", c_float),
    ("rope_freq_scale", c_float),
    ("yarn_ext_factor", c_float),
    ("yarn_attn_factor", c_float),
    ("yarn_beta_fast", c_float),
    ("yarn_beta_slow", c_float),
    ("yarn_orig_ctx", c_uint32),
    ("defrag_thold", c_float),
    ("cb_eval", c_void_p),
    ("cb_eval_user_data", c_void_p),
    ("type_k", c_int),
    ("type_v", c_int),
)
_CONTEXT_TAIL: Final = (
    ("abort_callback", c_void_p),
    ("abort_callback_data", c_void_p),
    ("embeddings", c_bool),
    ("offload_kqv", c_bool),
    ("no_perf", c_bool),
    ("op_offload", c_bool),
    ("swa_full", c_bool),
    ("kv_unified", c_bool),
    ("samplers", c_void_p),
    ("n_samplers", c_size_t),
    ("ctx_other", c_void_p),
)


class ContextParams(Structure):
    """struct llama_context_params of llama.cpp 0.5.0."""

    _fields_ = (*_CONTEXT_HEAD, *_CONTEXT_TAIL)


class ContextParamsMoe(Structure):
    """struct llama_context_params of llama.cpp 0.6.0-dev as of October 2026, which has one more field in its middle."""

    _fields_ = (*_CONTEXT_HEAD, ("moe_cache_size", c_size_t), *_CONTEXT_TAIL)


class Batch(Structure):
    """struct llama_batch."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


MODEL_DEFAULTS: Final = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "use_extra_bufts": True}
"""What llama_model_default_params returns where it is not zero."""

CONTEXT_DEFAULTS: Final = {
    "n_ctx": 512,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_seq_max": 1,
    "n_outputs_max_per_seq": 1,
    "n_threads": 4,
    "n_threads_batch": 4,
    "rope_scaling_type": -1,
    "pooling_type": -1,
    "attention_type": -1,
    "flash_attn_type": -1,
    "yarn_ext_factor": -1.0,
    "yarn_attn_factor": -1.0,
    "yarn_beta_fast": -1.0,
    "yarn_beta_slow": -1.0,
    "defrag_thold": -1.0,
    "type_k": 1,
    "type_v": 1,
    "offload_kqv": True,
    "no_perf": True,
    "op_offload": True,
    "swa_full": True,
}
"""What llama_context_default_params returns where it is not zero."""


def declare(native: ctypes.CDLL, context_params: type[Structure]) -> None:
    """Give the functions that this runtime calls their signatures. Raises ``AttributeError`` for one that is absent."""
    signatures: dict[str, tuple[object, tuple[object, ...]]] = {
        "ggml_backend_dev_backend_reg": (c_void_p, (c_void_p,)),
        "ggml_backend_dev_count": (c_size_t, ()),
        "ggml_backend_dev_get": (c_void_p, (c_size_t,)),
        "ggml_backend_dev_name": (c_char_p, (c_void_p,)),
        "ggml_backend_dev_type": (c_int, (c_void_p,)),
        "ggml_backend_reg_name": (c_char_p, (c_void_p,)),
        "ggml_quantize_chunk": (
            c_size_t,
            (c_int, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p),
        ),
        "ggml_version": (c_char_p, ()),
        "llama_backend_init": (None, ()),
        "llama_context_default_params": (context_params, ()),
        "llama_decode": (c_int32, (c_void_p, Batch)),
        "llama_free": (None, (c_void_p,)),
        "llama_get_embeddings": (c_void_p, (c_void_p,)),
        "llama_get_logits": (c_void_p, (c_void_p,)),
        "llama_get_memory": (c_void_p, (c_void_p,)),
        "llama_init_from_model": (c_void_p, (c_void_p, context_params)),
        "llama_log_set": (None, (c_void_p, c_void_p)),
        "llama_max_devices": (c_size_t, ()),
        "llama_memory_seq_pos_max": (c_int32, (c_void_p, c_int32)),
        "llama_memory_seq_pos_min": (c_int32, (c_void_p, c_int32)),
        "llama_memory_clear": (None, (c_void_p, c_bool)),
        "llama_memory_seq_cp": (None, (c_void_p, c_int32, c_int32, c_int32, c_int32)),
        "llama_memory_seq_rm": (c_bool, (c_void_p, c_int32, c_int32, c_int32)),
        "llama_model_default_params": (ModelParams, ()),
        "llama_model_free": (None, (c_void_p,)),
        "llama_model_get_vocab": (c_void_p, (c_void_p,)),
        "llama_model_load_from_file": (c_void_p, (c_char_p, ModelParams)),
        "llama_n_batch": (c_uint32, (c_void_p,)),
        "llama_n_ctx": (c_uint32, (c_void_p,)),
        "llama_n_threads": (c_int32, (c_void_p,)),
        "llama_set_n_threads": (None, (c_void_p, c_int32, c_int32)),
        "llama_set_embeddings": (None, (c_void_p, c_bool)),
        "llama_set_abort_callback": (None, (c_void_p, c_void_p, c_void_p)),
        "llama_state_get_data": (c_size_t, (c_void_p, c_void_p, c_size_t)),
        "llama_state_get_size": (c_size_t, (c_void_p,)),
        "llama_state_seq_get_data_ext": (c_size_t, (c_void_p, c_void_p, c_size_t, c_int32, c_uint32)),
        "llama_state_seq_get_size_ext": (c_size_t, (c_void_p, c_int32, c_uint32)),
        "llama_state_seq_set_data": (c_size_t, (c_void_p, c_void_p, c_size_t, c_int32)),
        "llama_state_seq_set_data_ext": (c_size_t, (c_void_p, c_void_p, c_size_t, c_int32, c_uint32)),
        "llama_tokenize": (c_int32, (c_void_p, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool)),
        "llama_version": (c_char_p, ()),
        "llama_vocab_n_tokens": (c_int32, (c_void_p,)),
    }
    for name, (result, arguments) in signatures.items():
        function = getattr(native, name)
        function.restype = result
        function.argtypes = arguments
