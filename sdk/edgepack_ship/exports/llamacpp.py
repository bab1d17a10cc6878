"""llama.cpp: the GGUF file, its chat template, and the command lines that use both as the bundle was proven.

The options are those of ``common/arg.cpp`` in llama.cpp; the fields of a request those of ``tools/server/README.md``.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from edgepack.bundle.manifest import Manifest
from edgepack.text.chat import TEMPLATE
from edgepack_ship.exports.differences import left_behind, templated
from edgepack_ship.exports.export import CARD, GGUF, Export, Made, as_json, write_text

POOLING = {"last": "last", "mean": "mean", "first": "cls"}


def write(asked: Export, folder: Path) -> Made:
    """Write model.gguf, chat_template.jinja, the licence, the model card and a README with the command lines."""
    variant = asked.variant("gguf")
    manifest = asked.manifest
    card = dict.fromkeys(asked.shared(CARD), "MODEL_CARD.md")
    asked.copy(asked.variant_files(variant) | asked.shared(TEMPLATE, *manifest.license.files) | card, folder)
    options = shlex.join(_options(asked))
    server = f"llama-server -m {GGUF} {options}"
    commands = [server] if manifest.embedding else [f"llama-cli -m {GGUF} {options}", server]
    differs = (*_embedding(manifest), *templated(manifest, "llama.cpp"), *left_behind(asked))
    write_text(folder / "README.md", _readme(asked, variant.id, commands, differs))
    return Made(variant.id, differs, tuple(commands))


def _options(asked: Export) -> list[str]:
    """Return the context, the template and the defaults of sampling, as llama-cli and llama-server take them."""
    manifest, context = asked.manifest, ["-c", str(asked.context)]
    if manifest.embedding is not None:
        return [*context, "--embedding", "--pooling", POOLING[manifest.embedding.pooling]]
    defaults = manifest.generation
    sampling = {
        "--temp": defaults.temperature,
        "--top-k": defaults.top_k,
        "--top-p": defaults.top_p,
        "--min-p": defaults.min_p,
        "--repeat-penalty": defaults.repetition_penalty,
        "-n": defaults.max_tokens,
    }
    if defaults.repetition_penalty != 1:
        sampling["--repeat-last-n"] = -1  # all tokens of the context, as edgepack counts them, not the last 64
    words = [word for name, value in sampling.items() for word in (name, f"{value:g}")]
    template = ["--jinja", "--chat-template-file", TEMPLATE] if manifest.chat else []
    return [*context, *template, *words]


def _embedding(manifest: Manifest) -> tuple[str, ...]:
    if manifest.embedding is None or not manifest.embedding.dense:
        return ()
    return ("llama.cpp gives the pooled states: the matrices behind the pooling, dense.f32, are not applied.",)


def _readme(asked: Export, variant: str, commands: list[str], differs: tuple[str, ...]) -> str:
    manifest = asked.manifest
    limit = manifest.context.profile
    lines = [
        f"# {asked.name} for llama.cpp",
        "",
        f"Variant {variant} of the bundle sha256:{asked.bundle.id}, licence {manifest.license.id}.",
        "",
        "```sh",
        *commands,
        "```",
        "",
        f"`-c` may be up to {limit} tokens; more takes more memory.",
    ]
    thinking = manifest.chat.thinking if manifest.chat else None
    if thinking is not None and thinking.switch is not None and thinking.switch.variable is not None:
        off = as_json({thinking.switch.variable: thinking.switch.off}).replace("\n", "").replace("  ", "")
        lines += ["", f"Without thinking: `--chat-template-kwargs {shlex.quote(off)}`."]
    if manifest.stops and manifest.embedding is None:
        stops = as_json({"stop": [stop.text for stop in manifest.stops]})
        lines += [
            "",
            "An answer ends at one of these tokens. llama.cpp knows those that the file's header names;",
            "a request can name all of them:",
            "",
            "```json",
            stops.rstrip(),
            "```",
        ]
    if differs:
        lines += ["", "What is otherwise than in edgepack:", "", *(f"- {each}" for each in differs)]
    return "\n".join(lines) + "\n"
