"""With OpenSSF's own package, both ways: what it signs is admitted, what edgepack signs it verifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import signing
import small_bundle

from edgepack.bundle.files import open_bundle
from edgepack.errors import TrustError
from edgepack.trust import admitting
from edgepack.trust.verifying import Kind
from edgepack_ship.signing.sign import sign

pytestmark = pytest.mark.oracle

CURVES: tuple[Kind, ...] = ("ecdsa-p256", "ecdsa-p384", "ecdsa-p521")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return small_bundle.write_with_draft(tmp_path / "small")


def verify(bundle: Path, key: Path) -> None:
    from model_signing import verifying

    config: Any = verifying.Config().use_elliptic_key_verifier(public_key=key)
    config.verify(bundle, bundle / "model.sig")


@pytest.mark.parametrize("kind", CURVES)
def test_it_verifies_what_edgepack_signs(bundle: Path, tmp_path: Path, kind: Kind) -> None:
    _, public = signing.key("ours", kind).write(tmp_path / "ours")
    sign(open_bundle(bundle), signing.key("ours", kind))
    verify(bundle, public)
    _, other = signing.key("other", kind).write(tmp_path / "other")
    with pytest.raises(ValueError, match="Key mismatch"):
        verify(bundle, other)
    (bundle / "draft" / "LICENSE").write_bytes(b"mit\n")
    with pytest.raises(ValueError, match="Hash mismatch for 'draft/LICENSE'"):
        verify(bundle, public)


@pytest.mark.parametrize("kind", CURVES)
def test_edgepack_admits_what_it_signs(bundle: Path, tmp_path: Path, kind: Kind) -> None:
    from model_signing import hashing
    from model_signing import signing as theirs

    private, public = signing.key("ours", kind).write(tmp_path / "ours")
    config: Any = theirs.Config().use_elliptic_key_signer(private_key=private)
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=[bundle / "model.sig"]))
    config.sign(bundle, bundle / "model.sig")
    assert admitting.vouched(open_bundle(bundle), public).kind == kind
    shards: Any = hashing.Config().use_shard_serialization()
    config.set_hashing_config(shards.set_ignored_paths(paths=[bundle / "model.sig"]))
    config.sign(bundle, bundle / "model.sig")
    with pytest.raises(TrustError, match="states nothing that edgepack reads"):
        admitting.vouched(open_bundle(bundle), public)


def test_it_does_not_verify_ed25519(bundle: Path, tmp_path: Path) -> None:
    _, public = signing.key().write(tmp_path / "ours")
    sign(open_bundle(bundle), signing.key())
    with pytest.raises(AttributeError, match="curve"):
        verify(bundle, public)
