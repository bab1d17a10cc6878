"""Write what the catalogue carries of each model's config.json, with which ``edgepack fit ALIAS`` needs no network.

    python benchmarks/refresh_catalogue.py [--only qwen3-0.6b ...]   # asks the hub, with your login for gated models
    python benchmarks/refresh_catalogue.py --shared SHARED           # published copies and sizes, as catalogue.py

A field is carried where the sizes change without it, at the default context or at the model's own. Each config must
have as many parameters as catalog.toml says. Of those from SHARED no commit is known, which the file says; what SHARED
has no config of stays as it is.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from catalogue import MODELS, config_of

from edgepack.device.planning import DEFAULT_CONTEXT
from edgepack.errors import EdgepackError
from edgepack_packager import families, source
from edgepack_packager.checkpoint import CONFIG
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.fit import element_type
from edgepack_packager.source import catalog

FILE = Path(catalog.__file__).with_name("configs.json")


def facts(config: Mapping[str, Any]) -> object:
    """Return all that ``fit`` takes from a config, None where it cannot be read."""
    try:
        own = families.describe(config)
        short = families.describe(config, min(DEFAULT_CONTEXT, own.context))
        return own, families.describe(config, own.trained_context), short, element_type(config)
    except (EdgepackError, KeyError, TypeError):
        return None


def needed(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a config without which ``fit`` would say something else, by name."""
    kept, whole = dict(sorted(config.items())), facts(config)
    for name in sorted(config):
        fewer = {key: value for key, value in kept.items() if key != name}
        if facts(fewer) == whole:
            kept = fewer
    return kept


def read(entry: catalog.Entry, shared: Path | None) -> tuple[dict[str, Any], str | None]:
    """Return a model's whole config.json and the commit that it is from."""
    if shared is not None:
        return config_of(entry.alias, shared), None
    found = source.find(entry.alias)
    return read_object(found.folder / CONFIG), found.revision


def main() -> None:
    """Read each config and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    carried = dict(catalog.configs()) if FILE.exists() else {}
    for entry in catalog.entries():
        if asked.only and entry.alias not in asked.only:
            continue
        if asked.shared and entry.alias.removesuffix("-base") not in MODELS:
            continue
        config, revision = read(entry, asked.shared)
        parameters = families.describe(config).n_parameters
        if parameters != entry.parameters:
            raise SystemExit(f"{entry.alias}: {parameters} parameters, and catalog.toml says {entry.parameters}")
        carried[entry.alias] = catalog.Carried(needed(config), revision)
    lines = [f"  {json.dumps(name)}: {msgspec.json.encode(each).decode()}" for name, each in carried.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
