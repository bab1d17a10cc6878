"""A bundle that is kept warm: with the state of a system prompt beside a payload, in a sealed bundle of its own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import msgspec

from edgepack import loading, warm
from edgepack.bundle import manifest as manifests
from edgepack.bundle.files import VARIANTS, open_bundle
from edgepack.bundle.manifest import PARENT, File, Manifest, Variant
from edgepack.bundle.warm import FACTS, STATE
from edgepack.trust.admitting import admit_bundle
from edgepack.warm import Made
from edgepack_ship.contents import Contents
from edgepack_ship.incoming import Folder
from edgepack_ship.writing import write_bundle


@dataclass(frozen=True, slots=True)
class Kept:
    """What lies beside a variant now: the state of ``tokens`` of a system prompt, of ``common`` that all chats with it
    begin with, in ``bytes``."""

    variant: str
    tokens: int
    common: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Warmed:
    """A new bundle at ``path``, and what was put into it; ``parent`` is the id of the one that it was made of."""

    path: str
    id: str
    parent: str
    variants: tuple[Kept, ...]


def keep_warm(
    bundle: str | os.PathLike[str],
    system: str,
    out: Path,
    variants: Sequence[str] = (),
    *,
    context: int | None = None,
    kv_cache: str | None = None,
    date: str | None = None,
    force: bool = False,
) -> Warmed:
    """Evaluate a system prompt with the named variants, or with the one that ``load`` would choose, and seal a bundle
    with their states at ``out``.

    ``context``, ``kv_cache`` and ``date`` as in ``load`` and ``Model.chat``. It is another bundle, so that the
    signature of the first does not vouch for it: sign it anew. Raises as ``load``, ``edgepack.warm.make`` and
    ``write_bundle``.
    """
    opened = open_bundle(bundle, verify="sizes")
    admit_bundle(opened)
    made: dict[str, Made] = {}
    for wanted in dict.fromkeys(variants or (None,)):
        choice = warm.untuned(
            loading.plan(opened, variant=wanted, context=context, kv_cache=kv_cache, warm=False, draft=False).choice
        )
        with loading.open_candidate(opened, choice) as model:
            made[choice.variant] = warm.make(opened, choice, model, system, date)
    sealed = write_bundle(Beside(opened.path, made), out, force=force, what="The warm bundle")
    warm.own(sealed.id)
    return Warmed(
        path=str(sealed.path),
        id=sealed.id,
        parent=opened.id,
        variants=tuple(Kept(id, of.tokens, of.common, len(of.state)) for id, of in made.items()),
    )


class Beside:
    """A bundle in a folder with states beside its variants, as a bundle that comes in: with a manifest of its own."""

    def __init__(self, path: Path, made: Mapping[str, Made]) -> None:
        self._cold = Folder(path)
        self.place = self._cold.place
        self._added = {
            f"{VARIANTS}/{id}/{name}": data
            for id, of in made.items()
            for name, data in ((FACTS, of.facts), (STATE, of.state))
        }
        cold = self._cold.contents()
        data = manifests.encode(_manifest(cold, self._added))
        self._contents = Contents(data, hashlib.sha256(data).hexdigest(), manifests.decode(data), cold.draft)

    def contents(self) -> Contents:
        return self._contents

    def signature(self) -> None:
        return None

    def variants(self) -> tuple[str, ...]:
        return self._cold.variants()

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        if name in self._added:
            return iter([self._added[name][begin:]])
        return self._cold.blocks(name, file, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def _manifest(cold: Contents, added: Mapping[str, bytes]) -> Manifest:
    schema = cold.manifest.schema
    return msgspec.structs.replace(
        cold.manifest,
        schema=msgspec.structs.replace(schema, features=[*dict.fromkeys([*schema.features, PARENT])]),
        variants=[_variant(each, added) for each in cold.manifest.variants],
        parent=cold.id,
    )


def _variant(variant: Variant, added: Mapping[str, bytes]) -> Variant:
    below = f"{VARIANTS}/{variant.id}/"
    new = {place.removeprefix(below): data for place, data in added.items() if place.startswith(below)}
    files = [File(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in new.items()]
    return msgspec.structs.replace(variant, files=[*(file for file in variant.files if file.path not in new), *files])
