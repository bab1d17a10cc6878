"""The chat templates of real models, from the shared folder, by the short names that its renderings use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TEMPLATES = {
    "Llama-3.2": "meta-llama-Llama-3.2-3B-Instruct.jinja",
    "Phi-3.5-mini": "microsoft-Phi-3.5-mini-instruct.jinja",
    "gemma-2-it": "google-gemma-2-2b-it.jinja",
    "Qwen2.5": "Qwen-Qwen2.5-7B-Instruct.jinja",
    "Qwen3": "Qwen-Qwen3-0.6B.jinja",
}


def real_template(model: str, folder: Path) -> str:
    if model in TEMPLATES:
        return (folder / TEMPLATES[model]).read_text()
    if model == "gemma-3-it":
        source: str = json.loads((folder / "gemma-3-it.json").read_text())["chat_template"]
        return source
    (phi, *_) = (str(v["template"]) for v in vectors_of(folder) if v.get("folder") == "data/phi-4-mini")
    return phi


def vectors_of(folder: Path) -> list[dict[str, Any]]:
    vectors: list[dict[str, Any]] = json.loads((folder / "ortx-chat-vectors.json").read_text())["vectors"]
    return vectors


def all_templates(folder: Path) -> dict[str, str]:
    """Return every chat template of the shared folder, each text once."""
    cases = json.loads((folder / "llama.cpp-test-chat-template.json").read_text())["cases"]
    found = {name: real_template(name, folder) for name in (*TEMPLATES, "gemma-3-it", "Phi-4-mini")}
    found |= {str(case["name"]): str(case["template_str"]) for case in cases}
    found |= {str(each["folder"]): str(each["template"]) for each in vectors_of(folder) if each.get("template")}
    return {name: source for source, name in {source: name for name, source in found.items()}.items()}
