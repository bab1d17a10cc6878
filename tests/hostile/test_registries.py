"""Hostile answers of registries and web folders: each is refused in words, or gives the bundle; nothing is left behind.

The seeds are fixed; ``pytest -m hostile`` tries all, ``--share 0.1`` the first tenth.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import small_bundle
from sweeps import damaged, swept
from web_servers import Request, response, serving

from edgepack.errors import EdgepackError
from edgepack_ship.incoming import Folder
from edgepack_ship.mirroring import mirror
from edgepack_ship.registry.address import Reference, WebFolder
from edgepack_ship.registry.artifact import compose
from edgepack_ship.registry.authorization import Credentials
from edgepack_ship.registry.client import Client
from edgepack_ship.registry.connection import Patience
from edgepack_ship.registry.stored import Stored
from edgepack_ship.registry.web import Mirrored
from edgepack_ship.writing import write_bundle

pytestmark = pytest.mark.hostile

Portion = Callable[[int], int]

EXTREMES: tuple[object, ...] = (
    None, True, 0, -1, 2, 2**53, 2**63, 10**30, 1e308, "", "\0", "é", "../../etc/passwd", "/etc/passwd", "x" * 5000,
    "sha256:" + "0" * 64, "sha256:../..", "sha512:00", [], {}, [None], [[]] * 300, {"": None}, "manifest.json",
)  # fmt: skip
LOCATIONS = (
    "", "/", "..", "file:///etc/passwd", "ftp://127.0.0.1/", "http://[::1", "http://127.0.0.1:1/", "https://127.0.0.1:1",
    "//127.0.0.1:99999/x", "javascript:1", "http:///x", "http://a@127.0.0.1/", "\x01", "x" * 60_000,
    "http://" + "a" * 300,
)  # fmt: skip
CHALLENGES = (
    "", "Basic", "Bearer", 'Bearer realm=""', 'Bearer realm="file:///etc/passwd"', 'Bearer realm="http://[::1"',
    'Bearer realm="/token",scope="' + "x" * 60_000, 'Bearer realm="/token",' * 500, "Bearer " + "a" * 60_000, "\xff",
    'Bearer realm="/index.json"', 'Digest nonce="x"',
)  # fmt: skip
STATUS = (0, 99, 100, 101, 199, 204, 206, 226, 300, 304, 305, 399, 400, 403, 404, 416, 418, 429, 500, 503, 599, 999)


def changed(data: bytes, choice: random.Random) -> bytes:
    """A mutated document: of bytes, or of fields."""
    try:
        document = json.loads(data)
    except ValueError:
        return damaged(data, choice)
    if choice.random() < 0.3:
        return damaged(data, choice)
    pairs = list(_places(document))
    parent, key = choice.choice(pairs)
    match choice.randrange(5):
        case 0:
            del parent[key]
        case 1 if isinstance(parent, dict):
            parent[choice.choice(("surprise", "", "size", "digest"))] = deepcopy(choice.choice(EXTREMES))
        case 2 if isinstance(parent, list):
            parent.extend([parent[key]] * choice.choice((1, 300)))
        case 3:
            other, place = choice.choice(pairs)
            parent[key] = json.loads(json.dumps(other[place]))
        case _:
            parent[key] = deepcopy(choice.choice(EXTREMES))
    return json.dumps(document).encode()


def _places(document: Any) -> Iterator[tuple[Any, Any]]:
    pairs = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in pairs:
        yield document, key
        yield from _places(value)


def wire(data: bytes | None, request: Request, choice: random.Random) -> bytes:
    """What goes over the wire in the place of a sound answer, three times in four the sound one."""
    if data is None:
        return response(404)
    if choice.random() < 0.75:
        return response(200, data)
    length = choice.choice((0, 1, len(data) - 1, len(data) + 1, 2**31, 2**63, 10**30, -1))
    match choice.randrange(9):
        case 0:
            return damaged(response(200, data), choice)
        case 1:
            return damaged(response(200, data), choice, 0, 60)
        case 2:
            return response(200, data, content_length=str(length))
        case 3:
            return response(choice.choice((301, 302, 307, 308)), location=choice.choice(LOCATIONS))
        case 4:
            return response(401, data, www_authenticate=choice.choice(CHALLENGES))
        case 5:
            return response(choice.choice(STATUS), data, retry_after=choice.choice(("1", "9" * 400, "-1", "x")))
        case 6:
            chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data)
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            return head + damaged(chunks, choice, 0, 12)
        case 7:
            part = f"bytes {length}-{choice.choice((0, len(data), 2**63))}/{choice.choice((0, len(data), '*', 'x'))}"
            return response(206, data, content_range=part)
        case _:
            flood = b"".join(b"x-%d: y\r\n" % each for each in range(choice.choice((90, 5000))))
            return b"HTTP/1.1 200 OK\r\n" + flood + b"\r\n" + data


def kind(number: str) -> str:
    """What a case is about: the bundle's manifest, the document that leads to it, or the wire."""
    return ("manifest", "document", "wire")[int(number) % 3] if number.isdigit() else "wire"


def sealed(manifest: bytes, document: bytes, number: str) -> tuple[bytes, str, bytes]:
    """The bundle's manifest of a case, its id, and the document that names it by that."""
    told = changed(manifest, random.Random(number)) if kind(number) == "manifest" else manifest
    id = hashlib.sha256(told).hexdigest()
    return told, id, document.replace(hashlib.sha256(manifest).hexdigest().encode(), id.encode())


def pulled(incoming: Stored | Mirrored, folder: Path, number: int) -> None:
    """Pull into a folder of the case's own, in which nothing but the whole bundle may then lie."""
    place = folder / f"case-{number}"
    place.mkdir()
    try:
        with suppress(EdgepackError), incoming:
            write_bundle(incoming, place / "out")
        assert os.listdir(place) in ([], ["out"]), "left behind"
        assert not (place / "out").exists() or (place / "out" / "manifest.json").exists(), "half of it"
    finally:
        shutil.rmtree(place)


def client(url: str) -> Client:
    known = Credentials("user", "secret")
    return Client(url, wait=lambda _: None, patience=Patience(say=2), credentials=lambda _: known)


def test_no_answer_of_a_web_folder_is_more_than_an_error(tmp_path: Path, portion: Portion) -> None:
    bundle = small_bundle.write(tmp_path / "bundle")
    (bundle / "model.sig").write_bytes(b'{"payload": "x"}')
    with Folder(bundle) as incoming:
        mirror([incoming], tmp_path / "www")
    index = (tmp_path / "www" / "index.json").read_bytes()
    manifest = (bundle / "manifest.json").read_bytes()
    objects = {each.name: each.read_bytes() for each in (tmp_path / "www" / "objects").rglob("*") if each.is_file()}

    def reply(request: Request) -> bytes:
        _, number, *rest = request.path.split("/")
        choice = random.Random(f"{number} {rest}")
        resealed, id, told = sealed(manifest, index, number)
        if rest == ["index.json"] and kind(number) == "document":
            return response(200, changed(told, choice))
        found = told if rest == ["index.json"] else {**objects, id: resealed}.get(rest[-1] if rest else "")
        return wire(found, request, choice)

    (tmp_path / "pulled").mkdir()
    with serving(reply) as server:

        def pull(number: int) -> None:
            url = f"{server.url}{number}/"
            pulled(Mirrored(WebFolder(url), client(url)), tmp_path / "pulled", number)

        assert swept(pull, range(portion(2500)), tmp_path) == []
    assert sorted(os.listdir(tmp_path / "pulled")) == []


def test_no_answer_of_a_registry_is_more_than_an_error(tmp_path: Path, portion: Portion) -> None:
    bundle = small_bundle.write(tmp_path / "bundle")
    with Folder(bundle) as incoming:
        inside = incoming.contents()
        composed = compose(inside, b'{"payload": "x"}', inside.variants)
    manifest = (bundle / "manifest.json").read_bytes()
    blobs = dict(composed.held)
    blobs |= {digest: (bundle / path).read_bytes() for digest, (path, _) in composed.files.items()}

    def reply(request: Request) -> bytes:
        number, *rest = request.path.removeprefix("/v2/n").split("/")
        choice = random.Random(f"{number} {rest}")
        resealed, id, told = sealed(manifest, composed.manifest, number)
        if rest == ["manifests", "1"] and kind(number) == "document":
            return response(200, changed(told, choice))
        found = told if "manifests" in rest else {**blobs, f"sha256:{id}": resealed}.get(rest[-1] if rest else "")
        if "token" in request.path:
            found = changed(b'{"token": "abc", "access_token": "abc"}', choice)
        return wire(found, request, choice)

    (tmp_path / "pulled").mkdir()
    with serving(reply) as server:

        def pull(number: int) -> None:
            where = Reference(f"127.0.0.1:{server.port}", f"n{number}", "1")
            pulled(Stored(where, client(where.server())), tmp_path / "pulled", number)

        assert swept(pull, range(portion(2500)), tmp_path) == []
    assert sorted(os.listdir(tmp_path / "pulled")) == []
