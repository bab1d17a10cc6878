"""The bundles that are served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import msgspec
import pytest

import edgepack_packager
from edgepack import open_bundle
from edgepack.bundle import manifest
from edgepack_packager.build import Built, Recipe, build


def kept(built: Built, variant: str, out: Path) -> Path:
    """Copy a bundle with one of its variants: a load that has a choice times the engines."""
    others = [each.id for each in built.manifest.variants if each.id != variant]
    shutil.copytree(built.path, out, ignore=shutil.ignore_patterns("manifest.json", *others))
    variants = [each for each in built.manifest.variants if each.id == variant]
    (out / "manifest.json").write_bytes(manifest.encode(msgspec.structs.replace(built.manifest, variants=variants)))
    return open_bundle(out).path


TEMPLATE = """{%- if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}To call one: <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>{{ message.content }}</tool_response><|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}
{%- for call in message.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@pytest.fixture(scope="session")
def tool_bundle(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The demo model in 4 bits for gguf and onnx, with a template in the form of Hermes."""
    place = tmp_path_factory.mktemp("tools")
    source = place / "demo"
    shutil.copytree(Path(edgepack_packager.__path__[0]) / "demo_model", source)
    (source / "chat_template.jinja").write_text(TEMPLATE)
    settings = json.loads((source / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    return build(str(source), Recipe(("gguf", "onnx"), ("q4",), unproven=True), place / "demo.edgepack")


@pytest.fixture(scope="session")
def one_variant(tool_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(tool_bundle, "onnx-int4_mixed", tmp_path_factory.mktemp("onnx") / "demo.edgepack")


@pytest.fixture(scope="session")
def gguf_variant(tool_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kept(tool_bundle, "gguf-q4_k_m", tmp_path_factory.mktemp("gguf") / "demo.edgepack")
