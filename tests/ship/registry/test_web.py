"""Bundles in a folder that a web server serves: mirrored, named, pulled, and resumed whatever the server does."""

from __future__ import annotations

import functools
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import small_bundle
from web_servers import Reply, Request, Served, folder, response, serving

from edgepack.bundle.files import open_bundle
from edgepack.errors import BundleDamagedError, TransferError, UsageError
from edgepack_ship.incoming import Folder, opened
from edgepack_ship.mirroring import mirror
from edgepack_ship.registry import address
from edgepack_ship.registry.address import WebFolder
from edgepack_ship.registry.client import TRIES, Client
from edgepack_ship.registry.connection import Patience
from edgepack_ship.registry.download import download
from edgepack_ship.registry.index import object_path
from edgepack_ship.registry.web import Mirrored
from edgepack_ship.writing import write_bundle

PAYLOADS = {"fake-q4": bytes(range(256)) * 400, "fake-f32": b"exact" * 9000}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    variants = [small_bundle.variant(id, data) for id, data in PAYLOADS.items()]
    written = small_bundle.write(tmp_path / "small.edgepack", variants, PAYLOADS, sequence=3)
    (written / "model.sig").write_bytes(b"{}")
    return written


@pytest.fixture
def served(bundle: Path, tmp_path: Path) -> Path:
    with Folder(bundle) as incoming:
        mirror([incoming], tmp_path / "www")
    return tmp_path / "www"


def incoming(server: Served, waits: list[float] | None = None, name: str | None = None) -> Mirrored:
    waits = [] if waits is None else waits
    return Mirrored(WebFolder(server.url, name), Client(server.url, wait=waits.append, patience=Patience(say=0.5)))


def tree(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def payload(id: str) -> tuple[str, bytes]:
    data = PAYLOADS[id]
    return object_path(small_bundle.entry("", data)["sha256"]), data


def test_a_mirrored_bundle_comes_back_whole(bundle: Path, served: Path, tmp_path: Path) -> None:
    with serving(folder(served)) as server, opened(server.url, bases=lambda _: None) as found:
        write_bundle(found, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(bundle)


def test_a_variant_that_is_not_asked_for_stays_where_it_is(served: Path, tmp_path: Path) -> None:
    with serving(folder(served)) as server, incoming(server) as found:
        copy = write_bundle(found, tmp_path / "back", ["fake-q4"])
    assert copy.absent == ("fake-f32",)
    assert f"/{payload('fake-q4')[0]}" in server.paths()
    assert f"/{payload('fake-f32')[0]}" not in server.paths()


def test_the_server_of_the_standard_library_serves_it(bundle: Path, served: Path, tmp_path: Path) -> None:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(served))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        where = f"http://127.0.0.1:{server.server_port}/#small"
        with opened(where, bases=lambda _: None) as found:
            write_bundle(found, tmp_path / "back")
            name, data = payload("fake-q4")
            again = found.blocks(name, open_bundle(bundle).manifest.variants[0].files[0], 1000)
            assert b"".join(again) == data[1000:]  # it knows no ranges, and sends all of it anew
        server.shutdown()
    assert tree(tmp_path / "back") == tree(bundle)


@pytest.mark.parametrize("cut", [5000, 65_537, 102_399])
def test_a_cut_connection_is_gone_on_with_where_it_ended(served: Path, cut: int) -> None:
    name, data = payload("fake-q4")
    waits: list[float] = []
    with serving(folder(served, cut=cut)) as server:
        client = Client(server.url, wait=waits.append)
        assert b"".join(download(client, server.url + name, len(data))) == data
    asked = [each.headers.get("range") for each in server.requests]
    assert asked == [None, *(f"bytes={at}-" for at in range(cut, len(data), cut))]
    assert waits == [0.5] * (len(asked) - 1)


def test_what_another_run_has_is_not_fetched_again(served: Path) -> None:
    name, data = payload("fake-q4")
    with serving(folder(served)) as server:
        rest = b"".join(download(Client(server.url), server.url + name, len(data), 100_000))
    assert rest == data[100_000:]
    assert server.sent < 4000


def test_a_server_without_ranges_that_cuts_every_connection_is_given_up(served: Path) -> None:
    name, data = payload("fake-q4")
    waits: list[float] = []
    with serving(folder(served, ranges=False, cut=5000)) as server:
        got = bytearray()
        with pytest.raises(TransferError, match=f"cut the connection, {TRIES} times"):
            for block in download(Client(server.url, wait=waits.append), server.url + name, len(data)):
                got += block
    assert bytes(got) == data[:5000]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0]


def test_too_little_at_a_time_is_no_progress(served: Path) -> None:
    name, data = payload("fake-q4")
    with serving(folder(served, cut=100)) as server, pytest.raises(TransferError, match="times"):
        b"".join(download(Client(server.url, wait=waited), server.url + name, len(data)))


def waited(seconds: float) -> None:
    assert seconds > 0


def lying(served: Path, change: Callable[[bytes], bytes]) -> Reply:
    """The folder, with other answers for the payload alone."""
    honest = folder(served)
    name = payload("fake-q4")[0]

    def reply(request: Request) -> object:
        return change(PAYLOADS["fake-q4"]) if request.path.endswith(name) else honest(request)

    return reply  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda data: response(200, data[:-1]), "fewer bytes"),
        (lambda data: response(200, data + b"!"), "more bytes"),
        (lambda data: response(200, data, content_length=str(10**17)), "more bytes"),
        (lambda data: response(206, data, content_range=f"bytes 1-{len(data)}/{len(data)}"), "another part"),
        (lambda data: response(206, data), "status 206"),
        (lambda data: response(416), "fewer bytes"),
        (lambda data: response(200, data, content_encoding="gzip"), "encoded"),
        (lambda data: response(500, b"{}"), "busy .status 500., 6 times"),
        (lambda data: response(404, b"<html>no</html>"), "has not got a file of the bundle"),
        (lambda data: b"HTTP/1.1 200 OK\r\n\r\n" + data[:50_000], "ended after 50,000 of 102,400"),
        (lambda data: b"220 mail.example ESMTP\r\n", "cut the connection"),
    ],
)
def test_lies_about_lengths_are_found_out(
    served: Path, tmp_path: Path, answer: Callable[[bytes], bytes], says: str
) -> None:
    with (
        serving(lying(served, answer)) as server,
        incoming(server) as found,
        pytest.raises((TransferError, BundleDamagedError), match=says),
    ):
        write_bundle(found, tmp_path / "back")
    assert sorted(os.listdir(tmp_path)) == ["small.edgepack", "www"]


def test_other_bytes_are_no_bundle(served: Path, tmp_path: Path) -> None:
    with (
        serving(lying(served, lambda data: response(200, bytes(len(data))))) as server,
        incoming(server) as found,
        pytest.raises(BundleDamagedError, match="its sha256 differs"),
    ):
        write_bundle(found, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_an_answer_without_end_is_cut_off() -> None:
    def endless(request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while True:
            yield bytes(1 << 16)

    with serving(endless) as server, incoming(server) as found, pytest.raises(TransferError, match="8,388,608 bytes"):
        found.contents()
    assert server.sent < 32 << 20


def test_a_file_without_end_ends_where_the_manifest_says(served: Path) -> None:
    data = payload("fake-q4")[1]

    def endless(request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n\r\n" + data
        while True:
            yield bytes(1 << 16)

    with serving(endless) as server:
        assert b"".join(download(Client(server.url), server.url, len(data))) == data


def test_a_server_that_never_answers_is_not_waited_for(served: Path) -> None:
    with (
        serving(lambda _: None) as server,
        incoming(server) as found,
        pytest.raises(TransferError, match="does not answer in time"),
    ):
        found.contents()


def test_a_server_that_falls_silent_is_asked_again(served: Path) -> None:
    honest = folder(served)
    silent = iter([True, False])

    def reply(request: Request) -> object:
        return None if "objects" in request.path and next(silent, False) else honest(request)

    waits: list[float] = []
    with serving(reply) as server, incoming(server, waits) as found:  # type: ignore[arg-type]
        assert found.contents().manifest.name == "small"
    assert waits == [1.0]


def test_a_head_that_drips_is_not_waited_for() -> None:
    gone = threading.Event()

    def dripping(request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\n"
        while not gone.wait(0.05):
            yield b"x: y\r\n"

    with serving(dripping) as server:
        client = Client(server.url, patience=Patience(say=0.2))
        with pytest.raises(TransferError, match="does not answer in time"):
            client.fetch(server.url, 100, "it")
        gone.set()


def test_a_body_that_drips_is_not_waited_for() -> None:
    gone = threading.Event()

    def dripping(request: Request) -> Iterator[bytes]:
        yield b"HTTP/1.1 200 OK\r\ncontent-length: 10000\r\n\r\n"
        while not gone.wait(0.01):
            yield b"."

    with serving(dripping) as server:
        client = Client(server.url, wait=waited, patience=Patience(block=0.2))
        with pytest.raises(TransferError, match=f"does not answer in time, {TRIES} times"):
            b"".join(download(client, server.url, 10_000))
        gone.set()


def test_a_folder_takes_more_bundles_and_names_tell_them_apart(bundle: Path, served: Path, tmp_path: Path) -> None:
    newer = small_bundle.write(tmp_path / "newer", sequence=4)
    other = small_bundle.write(tmp_path / "other", name="other")
    before = {path: path.stat().st_mtime_ns for path in served.rglob("*") if path.is_file()}
    with Folder(newer) as one, Folder(other) as two:
        made = mirror([one, two], served)
    assert [each.name for each in made.added] == ["small", "other"]
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} == {served / "index.json"}
    ids = {each: open_bundle(each).id for each in (bundle, newer, other)}
    with serving(folder(served)) as server:
        for name, meant in [("small", newer), ("other", other), (f"sha256:{ids[bundle]}", bundle)]:
            with incoming(server, name=name) as found:
                assert found.contents().id == ids[meant]
        with incoming(server) as found, pytest.raises(UsageError, match=r"has 2 bundles.*It has: small, other"):
            found.contents()
        with incoming(server, name="third") as found, pytest.raises(UsageError, match="no bundle 'third'"):
            found.contents()


def test_a_bundle_under_another_name_is_refused(served: Path) -> None:
    place = served / "index.json"
    place.write_text(place.read_text().replace('"small"', '"trusted"'))
    with (
        serving(folder(served)) as server,
        incoming(server) as found,
        pytest.raises(TransferError, match="another bundle than its index says: small"),
    ):
        found.contents()


def test_a_mirror_of_a_damaged_bundle_names_none(bundle: Path, tmp_path: Path) -> None:
    (bundle / "variants" / "fake-f32" / "model.bin").write_bytes(bytes(len(PAYLOADS["fake-f32"])))
    with Folder(bundle) as damaged, pytest.raises(BundleDamagedError, match="sha256 differs"):
        mirror([damaged], tmp_path / "www")
    assert not (tmp_path / "www" / "index.json").exists()
    assert not list((tmp_path / "www").rglob("*.partial"))


def test_a_mirror_is_readable_by_another_user(served: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    assert {path.stat().st_mode & 0o777 for path in served.rglob("*") if path.is_file()} == {0o666 & ~mask}


def test_a_mirror_can_be_made_of_a_mirror(served: Path, tmp_path: Path) -> None:
    with serving(folder(served)) as server, incoming(server) as found:
        mirror([found], tmp_path / "second")
    assert tree(tmp_path / "second") == tree(served)


def test_a_newer_index_asks_for_a_newer_edgepack(served: Path) -> None:
    (served / "index.json").write_text(json.dumps({"version": 2, "bundles": {}}))
    with serving(folder(served)) as server, incoming(server) as found, pytest.raises(Exception, match="newer than"):
        found.contents()


def test_a_bundle_with_a_draft_comes_with_it(tmp_path: Path) -> None:
    whole = small_bundle.write_with_draft(tmp_path / "small.edgepack")
    with Folder(whole) as local:
        mirror([local], tmp_path / "www")
    with serving(folder(tmp_path / "www")) as server, incoming(server) as found:
        write_bundle(found, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(whole)


@pytest.mark.parametrize(
    ("where", "url", "name"),
    [
        ("https://models.example/edge/#smollm2", "https://models.example/edge/", "smollm2"),
        ("https://models.example/edge", "https://models.example/edge/", None),
        ("HTTPS://models.example:8443/a/index.json#x%20y", "https://models.example:8443/a/", "x y"),
        ("https://models.example", "https://models.example/", None),
    ],
)
def test_addresses_of_folders(where: str, url: str, name: str | None) -> None:
    assert address.read(where) == WebFolder(url, name)


@pytest.mark.parametrize("where", ["https://", "https://[::1", "https://a b/", "https://h:99999/", "https://h/?q=1"])
def test_what_is_no_address_of_a_folder(where: str) -> None:
    with pytest.raises(UsageError):
        address.read(where)
