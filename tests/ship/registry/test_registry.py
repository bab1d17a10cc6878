"""Bundles in an OCI registry: the one that Debian packages, with and without a log-in, and one that is unreliable."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import docker_registry
import msgspec
import pytest
import small_bundle
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from docker_registry import PASSWORD, USER
from web_servers import Request, Served, response, serving

from edgepack.errors import BundleDamagedError, TransferError, UsageError
from edgepack_ship.incoming import Folder, opened
from edgepack_ship.pushing import Pushed, push
from edgepack_ship.registry import address
from edgepack_ship.registry.artifact import MODEL, compose, decode
from edgepack_ship.registry.authorization import Credentials
from edgepack_ship.registry.client import Client
from edgepack_ship.registry.stored import Stored
from edgepack_ship.writing import write_bundle

PAYLOADS = {"fake-q4": bytes(range(256)) * 400, "fake-f32": b"exact" * 9000}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    variants = [small_bundle.variant(id, data) for id, data in PAYLOADS.items()]
    written = small_bundle.write(tmp_path / "small.edgepack", variants, PAYLOADS)
    (written / "model.sig").write_bytes(b"{}")
    return written


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry.running(tmp_path_factory.mktemp("registry")) as host:
        yield host


def pushed(bundle: Path, where: str, known: Credentials | None = None) -> Pushed:
    reference = address.reference(where)
    with Folder(bundle) as incoming:
        return push(incoming, reference, client(where, known))


def client(where: str, known: Credentials | None = None) -> Client:
    return Client(address.reference(where).server(), credentials=lambda _: known, wait=lambda _: None)


def stored(where: str, known: Credentials | None = None) -> Stored:
    return Stored(address.reference(where), client(where, known))


def tree(path: Path) -> dict[str, bytes]:
    return {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_a_pushed_bundle_comes_back_whole(bundle: Path, registry: str, tmp_path: Path) -> None:
    made = pushed(bundle, f"oci://{registry}/models/whole:1")
    for where in (f"oci://{registry}/models/whole:1", made.reference):
        with opened(where, bases=lambda _: None) as incoming:
            copy = write_bundle(incoming, tmp_path / "back", force=True)
        assert copy.id == made.id
        assert tree(tmp_path / "back") == tree(bundle)


def test_one_variant_fetches_its_layers_only(bundle: Path, registry: str, tmp_path: Path) -> None:
    pushed(bundle, f"oci://{registry}/models/part:1")
    with stored(f"oci://{registry}/models/part:1") as incoming:
        asked = []
        real = incoming.blocks
        incoming.blocks = lambda name, *rest: (asked.append(name), real(name, *rest))[1]  # type: ignore[method-assign]
        copy = write_bundle(incoming, tmp_path / "back", ["fake-q4"])
    assert copy.absent == ("fake-f32",)
    assert "variants/fake-q4/model.bin" in asked
    assert "variants/fake-f32/model.bin" not in asked


def test_what_is_there_is_not_sent_again(bundle: Path, registry: str, tmp_path: Path) -> None:
    first = pushed(bundle, f"oci://{registry}/models/again:1")
    again = pushed(bundle, f"oci://{registry}/models/again:2")
    assert (again.sent, again.there, again.digest) == (0, first.sent, first.digest)
    newer = small_bundle.write(tmp_path / "newer", [small_bundle.variant("fake-q4", b"new")], {"fake-q4": b"new"})
    assert 0 < pushed(newer, f"oci://{registry}/models/again:3").sent < 10_000


def test_a_copy_without_a_variant_is_pushed_as_it_is(bundle: Path, registry: str, tmp_path: Path) -> None:
    with Folder(bundle) as incoming:
        write_bundle(incoming, tmp_path / "part", ["fake-q4"])
    made = pushed(tmp_path / "part", f"oci://{registry}/models/absent:1")
    with stored(f"oci://{registry}/models/absent:1") as incoming:
        assert incoming.contents().id == made.id
        assert incoming.variants() == ("fake-q4",)
        with pytest.raises(BundleDamagedError, match="does not hold the variant 'fake-f32'"):
            write_bundle(incoming, tmp_path / "back", ["fake-f32"])


def test_a_download_goes_on_where_it_ended(bundle: Path, registry: str) -> None:
    pushed(bundle, f"oci://{registry}/models/resumed:1")
    with stored(f"oci://{registry}/models/resumed:1") as incoming:
        name, file = next((n, f) for n, f in incoming.contents().files().items() if n.endswith("q4/model.bin"))
        assert b"".join(incoming.blocks(name, file, 100_000)) == PAYLOADS["fake-q4"][100_000:]


def test_a_bundle_with_a_draft_comes_with_it(registry: str, tmp_path: Path) -> None:
    whole = small_bundle.write_with_draft(tmp_path / "drafted")
    pushed(whole, f"oci://{registry}/models/drafted:1")
    with stored(f"oci://{registry}/models/drafted:1") as incoming:
        write_bundle(incoming, tmp_path / "back")
    assert tree(tmp_path / "back") == tree(whole)


def test_a_damaged_bundle_gets_no_tag(bundle: Path, registry: str) -> None:
    (bundle / "variants" / "fake-f32" / "model.bin").write_bytes(bytes(len(PAYLOADS["fake-f32"])))
    with pytest.raises(BundleDamagedError, match="sha256 differs"):
        pushed(bundle, f"oci://{registry}/models/damaged:1")
    with (
        stored(f"oci://{registry}/models/damaged:1") as incoming,
        pytest.raises(TransferError, match=r"has not got .*404"),
    ):
        incoming.contents()


def test_a_registry_that_asks_for_a_password_gets_it(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "registry"
    place.mkdir()
    with docker_registry.running(place, docker_registry.password_file(place)) as host:
        where = f"oci://{host}/models/small:1"
        with pytest.raises(TransferError, match=r"does not give what was asked for to this user \(401\)") as refused:
            pushed(bundle, where)
        assert f"docker login {host}," in str(refused.value)
        with pytest.raises(TransferError, match="does not give"):
            pushed(bundle, where, Credentials(USER, "wrong"))
        pushed(bundle, where, Credentials(USER, PASSWORD))
        with stored(where, Credentials(USER, PASSWORD)) as incoming:
            assert incoming.contents().manifest.name == "small"


@contextmanager
def tokens(place: Path) -> Iterator[tuple[Served, str]]:
    """A server of tokens for those who know the password, and the YAML of a registry that takes them."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tokens")])
    day = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    made = made.not_valid_before(day - timedelta(1)).not_valid_after(day + timedelta(1))
    certificate = made.sign(key, hashes.SHA256())
    der = certificate.public_bytes(serialization.Encoding.DER)
    (place / "roots.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(value if isinstance(value, bytes) else json.dumps(value).encode()).rstrip(b"=")

    def reply(request: Request) -> bytes:
        if request.headers.get("authorization") != Credentials(USER, PASSWORD).basic():
            return response(401)
        now = int(time.time())
        head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(der).decode()]}
        scope = (
            request.path.split("scope=")[1].split("&")[0].replace("%3A", ":").replace("%2F", "/").replace("%2C", ",")
        )
        kind, repository, actions = scope.split(":")
        access = [{"type": kind, "name": repository, "actions": actions.split(",")}]
        claims = {"iss": "tokens", "aud": "here", "sub": USER, "jti": "1", "access": access}
        claims |= {"exp": now + 60, "nbf": now - 60, "iat": now}
        signed = part(head) + b"." + part(claims)
        signature = key.sign(signed, padding.PKCS1v15(), hashes.SHA256())
        return response(200, json.dumps({"token": (signed + b"." + part(signature)).decode()}).encode())

    with serving(reply) as server:
        yield (
            server,
            (
                f"auth: {{token: {{realm: '{server.url}token', service: here, issuer: tokens, "
                f"rootcertbundle: {place / 'roots.pem'}}}}}\n"
            ),
        )


def test_a_registry_that_asks_for_tokens_gets_one_for_reading_and_one_for_writing(bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "registry"
    place.mkdir()
    with tokens(place) as (server, auth), docker_registry.running(place, auth) as host:
        where = f"oci://{host}/models/small:1"
        pushed(bundle, where, Credentials(USER, PASSWORD))
        assert len(server.requests) == 2
        with stored(where, Credentials(USER, PASSWORD)) as incoming:
            assert incoming.contents().manifest.name == "small"
        with pytest.raises(TransferError, match="does not give a token"), stored(where) as incoming:
            incoming.contents()


def test_an_upload_that_is_cut_or_refused_for_now_is_sent_again(bundle: Path) -> None:
    kept: dict[str, bytes] = {}
    faults = iter(["busy", "cut", "lost"])

    def reply(request: Request) -> bytes:
        path, _, query = request.path.partition("?")
        if request.method == "HEAD":
            return response(200 if path.rpartition("/")[2] in kept else 404)
        if request.method == "POST":
            return response(202, location="/v2/models/small/upload?state=1")
        if request.method == "PUT" and "/manifests/" in path:
            return response(201)
        match next(faults, None):
            case "busy":
                return response(503, retry_after="2")
            case "cut":
                return b""
            case "lost":
                return response(404)
        kept[query.partition("digest=")[2]] = request.body
        return response(201)

    waits: list[float] = []
    with serving(reply) as server, Folder(bundle) as incoming:
        where = address.reference(f"oci://127.0.0.1:{server.port}/models/small:1")
        push(incoming, where, Client(where.server(), wait=waits.append))
        composed = compose(incoming.contents(), b"{}", incoming.variants())
    assert set(kept) == {*composed.files, *composed.held}
    assert waits == [2.0, 2.0, 4.0]


def test_the_artifact_is_a_model_as_the_specification_has_it(bundle: Path) -> None:
    with Folder(bundle) as incoming:
        inside = incoming.contents()
        composed = compose(inside, b"{}", inside.variants)
        assert composed == compose(inside, b"{}", inside.variants)
    plain = json.loads(composed.manifest)
    assert (plain["schemaVersion"], plain["artifactType"]) == (2, "application/vnd.cncf.model.manifest.v1+json")
    assert plain["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
    kinds = {each["annotations"]["org.cncf.model.filepath"]: each["mediaType"] for each in plain["layers"]}
    assert {path: kind.removeprefix("application/vnd.cncf.model.") for path, kind in kinds.items()} == {
        "LICENSE": "doc.v1.raw",
        "tokenizer.json": "weight.config.v1.raw",
        "tokenizer.bin": "weight.config.v1.raw",
        "tokenizer_config.json": "weight.config.v1.raw",
        "chat_template.jinja": "weight.config.v1.raw",
        "variants/fake-q4/model.bin": "weight.v1.raw",
        "variants/fake-f32/model.bin": "weight.v1.raw",
        "manifest.json": "weight.config.v1.raw",
        "model.sig": "doc.v1.raw",
    }
    config = json.loads(composed.held[plain["config"]["digest"]])
    assert config["modelfs"] == {"type": "layers", "diffIds": [each["digest"] for each in plain["layers"]]}
    assert config["descriptor"] == {"name": "small", "version": inside.manifest.version, "licenses": ["MIT"]}
    assert config["config"]["format"] == "fake"


def test_an_artifact_without_a_bundle_is_refused(bundle: Path) -> None:
    with Folder(bundle) as incoming:
        whole = decode(compose(incoming.contents(), None, ["fake-q4"]).manifest, "here")
    assert whole.artifact_type == MODEL
    assert whole.layer("model.sig") is None
    called = {"org.cncf.model.filepath": "manifest.json"}
    twice = [*whole.layers, msgspec.structs.replace(whole.layers[0], annotations=called)]
    with pytest.raises(TransferError, match="two layers called"):
        msgspec.structs.replace(whole, layers=twice).layer("manifest.json")
    with pytest.raises(TransferError, match="no artifact that holds a bundle"):
        decode(b'{"schemaVersion": 2, "manifests": []}', "here")


@pytest.mark.parametrize(
    "where",
    [
        "oci://host/Upper:1", "oci://host:1", "oci://host/a", "oci://host/a:", "oci://host/../a:1", "oci:///a:1",
        "oci://host/a@sha256:12", "oci://user:pass@host/a:1", "oci://host/a:1?x", "oci://ho st/a:1", "oci://host/a//b:1",
        f"oci://host/{'a' * 300}:1", "https://host/a:1",
    ],
)  # fmt: skip
def test_what_is_no_address_in_a_registry(where: str) -> None:
    with pytest.raises(UsageError) as refused:
        address.reference(where)
    assert "pass" not in refused.value.message.replace("password", "")


def test_addresses_in_registries() -> None:
    digest = f"sha256:{'a' * 64}"
    found = address.read(f"oci://Registry.example:5000/team/small__x:1.0@{digest}")
    assert found == address.Reference("registry.example:5000", "team/small__x", "1.0", digest)
    assert (found.named, str(found)) == (digest, f"oci://registry.example:5000/team/small__x:1.0@{digest}")
    assert found.server() == "https://registry.example:5000"
    assert found.server(plain_http=True) == "http://registry.example:5000"
    assert address.reference("oci://docker.io/team/small:1").server() == "https://registry-1.docker.io"
    for here in ("localhost:5000", "127.0.0.1", "[::1]:5000"):
        assert address.reference(f"oci://{here}/a:1").server() == f"http://{here}"
    with pytest.raises(UsageError, match="names a digest"):
        push(None, found, None)  # type: ignore[arg-type]  # nothing is read before
