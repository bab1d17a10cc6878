"""What a device admits: the promises, over real keys, signatures and policies."""

from __future__ import annotations

import datetime
import json
import os
import shutil
from pathlib import Path

import pytest
import signing
import small_bundle

import edgepack
from edgepack import FakeRuntime
from edgepack.bundle.files import open_bundle
from edgepack.errors import BundleDamagedError, TrustError, UsageError
from edgepack.trust import admitting
from edgepack_ship.contents import contents
from edgepack_ship.incoming import Folder

RUNTIMES = {"fake": FakeRuntime()}
VARIANTS = [small_bundle.variant("fake-q4"), small_bundle.variant("fake-q8")]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return signing.sign(small_bundle.write(tmp_path / "small", VARIANTS, **signing.manifest()))


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    return signing.policy(tmp_path / "policy.toml", "ours")


def admitted(bundle: Path, policy: Path, today: str | None = None) -> admitting.Signer:
    """What the policy says of a bundle that comes in, as an install asks it."""
    rules, day = admitting.rules(policy), None if today is None else datetime.date.fromisoformat(today)
    with Folder(bundle) as incoming:
        return admitting.admit(rules, incoming.contents(), incoming.signature(), today=day)


def load(bundle: Path, policy: Path | None = None) -> None:
    with edgepack.load(bundle, policy=policy, runtimes=RUNTIMES):
        pass


def test_a_signed_bundle_is_admitted(bundle: Path, ours: Path) -> None:
    found = admitted(bundle, ours)
    assert (found.key, found.policy, found.kind) == ("ours", str(ours), "ed25519")
    assert found.fingerprint == signing.key().public.fingerprint
    load(bundle, ours)


def test_an_unsigned_bundle_is_refused(bundle: Path, ours: Path) -> None:
    (bundle / "model.sig").unlink()
    for asked in (admitted, load):
        with pytest.raises(TrustError, match=r"^small is not signed, and .*policy\.toml asks for a signature"):
            asked(bundle, ours)
    load(bundle)


def test_a_signature_of_another_key_is_refused(bundle: Path, ours: Path) -> None:
    signing.sign(bundle, "theirs")
    for asked in (admitted, load):
        with pytest.raises(TrustError, match=r"^None of the keys in .* made the signature of small"):
            asked(bundle, ours)


def test_a_signature_with_another_bit_is_refused(bundle: Path, ours: Path) -> None:
    document = json.loads((bundle / "model.sig").read_bytes())
    for field in ("payload", "sig"):
        place = document["dsseEnvelope"] if field == "payload" else document["dsseEnvelope"]["signatures"][0]
        kept, letter = place[field], place[field][40]
        place[field] = kept[:40] + ("A" if letter != "A" else "B") + kept[41:]
        (bundle / "model.sig").write_text(json.dumps(document))
        place[field] = kept
        with pytest.raises(TrustError, match="None of the keys"):
            admitted(bundle, ours)


def test_a_truncated_signature_is_refused(bundle: Path, ours: Path) -> None:
    whole = (bundle / "model.sig").read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 3):
        (bundle / "model.sig").write_bytes(whole[:length])
        for asked in (admitted, load):
            with pytest.raises(TrustError, match=r"^model\.sig is no signature"):
                asked(bundle, ours)


def test_swapped_manifests_are_refused(bundle: Path, ours: Path, tmp_path: Path) -> None:
    other = small_bundle.write(tmp_path / "other", VARIANTS, **signing.manifest(sequence=8))
    shutil.copy(other / "manifest.json", bundle)
    for asked in (admitted, load):
        with pytest.raises(TrustError, match="The signature is not of this bundle"):
            asked(bundle, ours)
    shutil.copy(bundle / "model.sig", other)
    with pytest.raises(TrustError, match="The signature is not of this bundle"):
        admitted(other, ours)


def test_a_swapped_draft_is_refused(tmp_path: Path, ours: Path) -> None:
    whole = signing.sign(small_bundle.write_with_draft(tmp_path / "whole"))
    assert admitted(whole, ours)
    manifest = json.loads((whole / "draft" / "manifest.json").read_bytes())
    (whole / "draft" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleDamagedError, match="draft"):
        admitted(whole, ours)


def test_a_statement_must_have_every_file_and_no_other(bundle: Path, ours: Path) -> None:
    from edgepack.trust import statement, vouching
    from edgepack.trust.statement import Envelope, Statement

    files = vouching.digests(open_bundle(bundle))

    def signed(files: dict[str, str]) -> None:
        payload = statement.written(Statement("small", files))
        signature = signing.key().sign(Envelope(payload, b"").message)
        (bundle / "model.sig").write_bytes(statement.sealed(Envelope(payload, signature)))

    signed(files)
    admitted(bundle, ours)
    weights = "variants/fake-q4/model.bin"
    changes = {
        f"{weights}, which the manifest lists, is not signed": {k: v for k, v in files.items() if k != weights},
        "it names surprise, which the manifest does not list": files | {"surprise": "ab" * 32},
        f"it has another digest for {weights}": files | {weights: "ab" * 32},
        "it names no manifest.json": {k: v for k, v in files.items() if k != "manifest.json"},
    }
    for what, changed in changes.items():
        signed(changed)
        with pytest.raises(TrustError, match=what):
            admitted(bundle, ours)


def test_a_copy_without_a_variant_is_vouched_for(bundle: Path, ours: Path) -> None:
    shutil.rmtree(bundle / "variants" / "fake-q8")
    assert open_bundle(bundle).absent == ("fake-q8",)
    assert admitted(bundle, ours)
    load(bundle, ours)


def test_what_is_vouched_for_is_still_read(bundle: Path, ours: Path) -> None:
    (bundle / "variants" / "fake-q4" / "model.bin").write_bytes(b"WEIGHTS")
    with (
        pytest.raises(BundleDamagedError, match="sha256 differs"),
        edgepack.load(bundle, variant="fake-q4", policy=ours, runtimes=RUNTIMES),
    ):
        pass


def test_the_last_day_of_a_key(bundle: Path, tmp_path: Path) -> None:
    policy = signing.policy(tmp_path / "policy.toml", "ours", more="not_after = 2027-12-31")
    assert admitted(bundle, policy, "2027-12-31")
    with pytest.raises(TrustError, match=r"which this device believes until 2027-12-31 alone, and it is 2028-01-01"):
        admitted(bundle, policy, "2028-01-01")
    signing.policy(policy, "ours", more="not_after = 1999-12-31")
    with pytest.raises(TrustError, match="until 1999-12-31 alone"):
        load(bundle, policy)


def test_a_key_for_other_names(bundle: Path, tmp_path: Path) -> None:
    policy = signing.policy(tmp_path / "policy.toml", "ours", bundles="kiosk-*")
    with pytest.raises(TrustError, match=r"signed by the key ours of .*, which may sign kiosk-\* alone"):
        admitted(bundle, policy)


def test_the_next_key_of_a_policy_may_have_signed(bundle: Path, tmp_path: Path) -> None:
    policy = signing.policy(tmp_path / "policy.toml", "old", "ours")
    assert admitted(bundle, policy).key == "ours"
    again = '[[key]]\nname = "again"\nbundles = ["kiosk"]\npem = """' + signing.pem() + '"""\n'
    policy.write_text("version = 1\n" + again + signing.policy(policy, "ours").read_text().partition("\n")[2])
    assert admitted(bundle, policy).key == "ours"


def test_other_rules(bundle: Path, tmp_path: Path) -> None:
    for rules, what in (
        ('minimum_sequence = { "small" = 8 }', "its sequence is 7, and 8 is the lowest"),
        ('licences = ["Apache-2.0"]', "its licence is 'MIT'"),
    ):
        policy = signing.policy(tmp_path / "policy.toml", "ours", rules=rules)
        with pytest.raises(TrustError, match=f"does not admit small: {what}"):
            admitted(bundle, policy)


def test_a_key_in_a_file_beside_the_policy(bundle: Path, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text('version = 1\n[[key]]\nname = "ours"\nbundles = ["*"]\nfile = "keys/ours.pub"\n')
    with pytest.raises(TrustError, match=r"keys/ours\.pub cannot be read: No such file"):
        load(bundle, policy)
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "ours.pub").write_text(signing.pem())
    load(bundle, policy)
    (tmp_path / "keys" / "ours.pub").write_text("no key")
    with pytest.raises(TrustError, match=r"ours\.pub is no public key"):
        load(bundle, policy)


@pytest.mark.parametrize("damage", ["", "version = 1", "version = 1\n[[key", "\0", "folder", "link"])
def test_a_damaged_policy_admits_nothing(bundle: Path, tmp_path: Path, damage: str) -> None:
    place = tmp_path / "policy.toml"
    if damage == "folder":
        place.mkdir()
    elif damage == "link":
        place.symlink_to(tmp_path / "nowhere")
    else:
        place.write_text(damage)
    with pytest.raises(TrustError, match=r"policy\.toml (is no|cannot be read)"):
        load(bundle, place)


def test_a_policy_that_is_not_there(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TrustError, match=r"none\.toml cannot be read: No such file"):
        load(bundle, tmp_path / "none.toml")
    for wrong in ("", 3):
        with pytest.raises(UsageError, match="policy cannot be"):
            edgepack.load(bundle, policy=wrong)  # type: ignore[arg-type]


def test_the_environment_names_a_policy(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = (signing.policy(tmp_path / f"{name}.toml", name) for name in ("theirs", "ours"))
    monkeypatch.setenv("EDGEPACK_POLICY", str(theirs))
    with pytest.raises(TrustError, match="None of the keys"):
        load(bundle)
    load(bundle, ours)  # the argument takes its place
    monkeypatch.setenv("EDGEPACK_POLICY", "")
    load(bundle)


def installed(bundle: Path, store: Path) -> Path:
    """A store with the bundle under the name "model"."""
    id = open_bundle(bundle).id
    (store / "names").mkdir(parents=True)
    (store / "names" / "model.json").write_text(json.dumps({"current": id}))
    shutil.copytree(bundle, store / "bundles" / id)
    return store


def test_no_argument_weakens_the_policy_of_a_store(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = installed(bundle, tmp_path / "store")
    monkeypatch.setenv("EDGEPACK_STORE", str(store))
    load(Path("model"))
    theirs = signing.policy(store / "policy.toml", "theirs")
    ours = signing.policy(tmp_path / "ours.toml", "ours")
    monkeypatch.setenv("EDGEPACK_POLICY", str(ours))
    for where in (Path("model"), next((store / "bundles").iterdir())):
        for policy in (None, ours):
            with pytest.raises(TrustError, match=r"store/policy\.toml"):
                load(where, policy)
    (tmp_path / "link").symlink_to(next((store / "bundles").iterdir()))
    with pytest.raises(TrustError, match=r"store/policy\.toml"):
        load(tmp_path / "link")
    theirs.write_text("damaged")
    with pytest.raises(TrustError, match=r"store/policy\.toml is no policy"):
        load(Path("model"), ours)
    signing.policy(theirs, "theirs", "ours")
    load(Path("model"), ours)
    load(bundle, ours)


def test_no_argument_weakens_the_policy_of_the_machine(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admitting, "system_policy", lambda: tmp_path / "etc.toml")
    ours = signing.policy(tmp_path / "ours.toml", "ours")
    load(bundle, ours)
    signing.policy(tmp_path / "etc.toml", "theirs")
    with pytest.raises(TrustError, match=r"etc\.toml"):
        load(bundle, ours)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the administrator may read anything")
def test_a_policy_that_may_not_be_read_admits_nothing(bundle: Path, ours: Path) -> None:
    ours.chmod(0)
    with pytest.raises(TrustError, match="Permission denied"):
        load(bundle, ours)


def test_a_check_reads_no_file_of_the_bundle(bundle: Path, ours: Path) -> None:
    opened = open_bundle(bundle, verify="sizes")
    for place in (bundle / "variants").rglob("model.bin"):
        place.unlink()
    assert [each.key for each in admitting.admit_bundle(opened, ours)] == ["ours"]


def test_what_opens_an_engine_asks_the_policies(bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgepack.loading import plan
    from edgepack.measuring.bench import bench
    from edgepack.tuning.tune import tune

    monkeypatch.setenv("EDGEPACK_POLICY", str(signing.policy(tmp_path / "theirs.toml", "theirs")))
    opened = open_bundle(bundle)
    with pytest.raises(TrustError, match="None of the keys"):
        bench(opened, plan(opened, runtimes=RUNTIMES).choice, runtimes=RUNTIMES)
    with pytest.raises(TrustError, match="None of the keys"):
        tune(opened, runtimes=RUNTIMES)


def test_what_comes_in_and_what_is_open_are_judged_alike(bundle: Path) -> None:
    from edgepack.trust import vouching

    shutil.rmtree(bundle / "variants" / "fake-q8")
    by_manifest = contents(lambda name: (bundle / name).read_bytes())
    assert vouching.digests(by_manifest) == vouching.digests(vouching.whole(open_bundle(bundle)))
