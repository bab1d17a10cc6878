"""Keys and signatures as a user makes them: files, their rights, and the commands."""

from __future__ import annotations

import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import signing
import small_bundle

from edgepack.bundle.files import open_bundle
from edgepack.cli import main
from edgepack.errors import BundleDamagedError, BundleError, TrustError, UsageError
from edgepack.trust import admitting, verifying
from edgepack.trust.verifying import Kind
from edgepack_ship.signing import keys
from edgepack_ship.signing.sign import sign

KINDS: tuple[Kind, ...] = ("ed25519", "ecdsa-p256", "ecdsa-p384", "ecdsa-p521")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle.write(tmp_path / "small")


def silent() -> None:
    return None


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_of_each_kind(kind: Kind, bundle: Path, tmp_path: Path) -> None:
    private, public = keys.make(kind).write(tmp_path / "release")
    assert (private.name, public.name) == ("release.key", "release.pub")
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    sign(open_bundle(bundle), keys.load(private, silent))
    found = admitting.vouched(open_bundle(bundle), public)
    assert (found.key, found.policy, found.kind) == (str(public), None, kind)
    with pytest.raises(TrustError, match="did not sign small"):
        admitting.vouched(open_bundle(bundle), keys.make(kind).write(tmp_path / "other")[1])


def test_a_key_is_never_written_over(tmp_path: Path) -> None:
    keys.make("ed25519").write(tmp_path / "release")
    (tmp_path / "release.key").unlink()
    kept = (tmp_path / "release.pub").read_bytes()
    with pytest.raises(UsageError, match=r"release\.pub is there already"):
        keys.make("ed25519").write(tmp_path / "release")
    assert [each.name for each in tmp_path.iterdir()] == ["release.pub"]
    assert (tmp_path / "release.pub").read_bytes() == kept
    with pytest.raises(TrustError, match="cannot be written: No such file"):
        keys.make("ed25519").write(tmp_path / "none" / "release")


def test_a_passphrase(tmp_path: Path) -> None:
    private, _ = keys.make("ecdsa-p256").write(tmp_path / "release", "open sesame")
    assert b"ENCRYPTED" in private.read_bytes()
    assert keys.load(private, lambda: "open sesame").public.kind == "ecdsa-p256"
    with pytest.raises(TrustError, match="the passphrase is not its own") as error:
        keys.load(private, lambda: "wrong words")
    assert "wrong words" not in str(error.value)
    with pytest.raises(TrustError, match="is encrypted, and no passphrase was given"):
        keys.load(private, silent)


@pytest.mark.parametrize(
    "data", [b"", b"no key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", b"\xff" * 100_000]
)
def test_what_is_no_key(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "release.key").write_bytes(data)
    with pytest.raises(TrustError, match=r"release\.key is no private key"):
        keys.load(tmp_path / "release.key", silent)
    with pytest.raises(TrustError, match=r"is (no public|a private) key"):
        admitting.pinned(tmp_path / "release.key")


def test_a_key_that_signs_no_bundles(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    for key in (rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP256K1())):
        (tmp_path / "k").write_bytes(
            key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
        )
        public = key.public_key().public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
        with pytest.raises(TrustError, match="of a kind that signs no bundles"):
            keys.load(tmp_path / "k", silent)
        with pytest.raises(TrustError, match="of a kind that signs no bundles"):
            verifying.public_key(public, "k")


def test_a_private_key_is_no_pin(tmp_path: Path) -> None:
    private, _ = keys.make("ed25519").write(tmp_path / "release")
    with pytest.raises(TrustError, match=r"release\.key is a private key"):
        admitting.pinned(private)


def test_the_repr_of_a_key_has_no_secret() -> None:
    assert repr(signing.key()) == f"<PrivateKey ed25519 {signing.key().public.fingerprint[:12]}>"


def test_a_damaged_bundle_is_not_signed(bundle: Path) -> None:
    (bundle / "variants" / "fake-q4" / "model.bin").write_bytes(b"WEIGHTS")
    with pytest.raises(BundleDamagedError, match="sha256 differs"):
        sign(open_bundle(bundle, verify="sizes"), signing.key())
    assert not (bundle / "model.sig").exists()


def test_a_signature_is_replaced_when_asked(bundle: Path) -> None:
    first = sign(open_bundle(bundle), signing.key()).read_bytes()
    with pytest.raises(UsageError, match="is signed already"):
        sign(open_bundle(bundle), signing.key("other"))
    assert (bundle / "model.sig").read_bytes() == first
    sign(open_bundle(bundle), signing.key("other"), force=True)
    assert (bundle / "model.sig").read_bytes() != first
    assert sorted(each.name for each in bundle.iterdir() if "sig" in each.name) == ["model.sig"]


def test_a_signature_changes_no_id_and_has_the_rights_of_the_rest(bundle: Path) -> None:
    before = open_bundle(bundle).id
    place = sign(open_bundle(bundle), signing.key())
    assert open_bundle(bundle).id == before
    assert stat.S_IMODE(place.stat().st_mode) == stat.S_IMODE((bundle / "manifest.json").stat().st_mode)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may write anywhere")
def test_a_folder_that_may_not_be_written(bundle: Path) -> None:
    bundle.chmod(0o500)
    with pytest.raises(BundleError, match="cannot be written"):
        sign(open_bundle(bundle), signing.key())
    bundle.chmod(0o700)


def test_a_crash_while_signing_leaves_a_whole_bundle(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there when the process ends before the rename is passed over by every reader."""

    def gone(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(os, "replace", gone)
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: None)
    with pytest.raises(SystemExit):
        sign(open_bundle(bundle), signing.key())
    (left,) = open_bundle(bundle).foreign
    assert left.startswith("._model.sig.")


# The commands


def run(*words: str) -> int:
    return main([*words])


def test_keygen_sign_and_verify(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("keygen", "-o", "release", "--json") == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["private"], made["public"], made["type"]) == ("release.key", "release.pub", "ed25519")
    assert run("verify", str(bundle), "--key", "release.pub") == 1
    assert "small is not signed" in capsys.readouterr().err
    assert run("sign", str(bundle), "--key", "release.key", "--json") == 0
    assert json.loads(capsys.readouterr().out)["fingerprint"] == made["fingerprint"]
    assert run("verify", str(bundle), "--key", "release.pub") == 0
    assert f"signed by release.pub, ed25519 sha256:{made['fingerprint'][:12]}" in capsys.readouterr().out
    assert run("verify", str(bundle)) == 0
    assert "signed, and nobody was asked for" in capsys.readouterr().out
    assert run("sign", str(bundle), "--key", "release.key") == 2
    assert "--force" in capsys.readouterr().err


def test_verify_says_what_a_policy_says(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    signing.sign(bundle)
    policy = signing.policy(tmp_path / "policy.toml", "ours")
    assert run("verify", str(bundle), "--policy", str(policy), "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["signed"] is True
    assert [(each["key"], each["policy"]) for each in found["signers"]] == [("ours", str(policy))]
    signing.policy(policy, "theirs")
    assert run("verify", str(bundle), "--policy", str(policy), "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "TrustError"


def test_run_takes_a_policy(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = signing.policy(tmp_path / "policy.toml", "ours")
    assert run("run", str(bundle), "hello", "--policy", str(policy)) == 1
    assert "small is not signed" in capsys.readouterr().err


def test_a_passphrase_of_the_environment_is_never_shown(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPACK_KEY_PASSPHRASE", "open sesame")
    assert run("keygen", "-o", "release", "--passphrase") == 0
    assert run("sign", str(bundle), "--key", "release.key") == 0
    monkeypatch.setenv("EDGEPACK_KEY_PASSPHRASE", "wrong words")
    assert run("sign", str(bundle), "--key", "release.key", "--force") == 1
    monkeypatch.delenv("EDGEPACK_KEY_PASSPHRASE")
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert run("sign", str(bundle), "--key", "release.key", "--force") == 1
    assert run("keygen", "-o", "other", "--passphrase") == 2
    assert not (tmp_path / "other.key").exists()
    told = capfd.readouterr()
    for secret in ("open sesame", "wrong words", "PRIVATE KEY"):
        assert secret not in told.out + told.err


def test_no_import_of_edgepack_brings_cryptography(bundle: Path) -> None:
    code = (
        "import sys, edgepack, edgepack.loading; from edgepack import FakeRuntime\n"
        f"edgepack.load({str(bundle)!r}, runtimes={{'fake': FakeRuntime()}}).close()\n"
        "assert not [each for each in sys.modules if each.startswith('cryptography')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_policy_without_cryptography_admits_nothing(bundle: Path, tmp_path: Path) -> None:
    policy = signing.policy(tmp_path / "policy.toml", "ours")
    code = (
        "import sys, edgepack; sys.modules['cryptography.exceptions'] = None\n"
        f"edgepack.load({str(signing.sign(bundle))!r}, policy={str(policy)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ExtraMissingError: Checking a signature needs" in done.stderr
