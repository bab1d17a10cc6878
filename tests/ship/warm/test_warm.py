"""Warm bundles: the same answers to the last bit, sooner, and passed over wherever the state is not this engine's."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from zlib import crc32

import msgspec
import numpy as np
import pytest
import signing
import small_bundle
from decoders import LFM2, RandomWeights, describe
from gguf_decoders import QWEN35
from small_bundle import entry

import edgepack
from edgepack import FakeRuntime, Result, loading, runtime, warm
from edgepack.bundle import manifest as manifests
from edgepack.bundle import warm as files
from edgepack.bundle.decoder import Decoder
from edgepack.bundle.files import MANIFEST, Bundle, open_bundle
from edgepack.bundle.manifest import File
from edgepack.bundle.warm import FACTS, STATE, Warm
from edgepack.errors import UsageError
from edgepack.runtime import Options, Session
from edgepack_packager import targets
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write
from edgepack_ship.warming import Warmed, keep_warm

DECODERS = {
    "attention": describe(n_vocab=260, context=1024),
    "convolutions": describe(**LFM2, n_vocab=260, context=1024),
    "delta rules": describe(**QWEN35, n_vocab=260, context=1024),
}
VARIANTS = ("gguf-f32", "onnx-f32", "mlx-f32")
SYSTEM = " ".join(f"Rule {n}: be brief." for n in range(16))


def bundle_of(decoder: Decoder, folder: Path) -> Path:
    """A bundle of a random model that three engines run."""
    requests = [Request(targets.find(id.partition("-")[0]), "f32", "f32") for id in VARIANTS]
    write(RandomWeights(decoder), requests, folder / "variants", Model("tiny", decoder, "f32"))
    payloads = {
        id: [entry(path.name, path.read_bytes()) for path in sorted((folder / "variants" / id).iterdir())]
        for id in VARIANTS
    }
    bundle = small_bundle.write(
        folder / "cold",
        [small_bundle.variant(id, files=files, floor="0") for id, files in payloads.items()],
        decoder=json.loads(msgspec.json.encode(decoder)),
        chat={"roles": ["system", "user", "assistant"], "date": None, "goldens": []},
        context={"trained": 1024, "profile": 1024, "verified": 1024, "kv_values_per_token": 128},
    )
    for id in VARIANTS:
        shutil.rmtree(bundle / "variants" / id)
        shutil.move(folder / "variants" / id, bundle / "variants" / id)
    return bundle


@pytest.fixture(scope="module")
def cold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(DECODERS["attention"], tmp_path_factory.mktemp("attention"))


@pytest.fixture(scope="module")
def fresh(cold: Path) -> dict[str, Result]:
    """The answers without a state."""
    return {variant: answer(cold, variant) for variant in VARIANTS}


@pytest.fixture(scope="module")
def made(cold: Path, tmp_path_factory: pytest.TempPathFactory) -> Warmed:
    return keep_warm(cold, SYSTEM, tmp_path_factory.mktemp("warm") / "warm.edgepack", VARIANTS)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that has made no state."""
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))


def answer(
    bundle: Path | str, variant: str, system: str = SYSTEM, said: str = "Where is it?", **options: bool
) -> Result:
    with edgepack.load(bundle, variant=variant, **options) as model:
        return model.chat(
            [{"role": "system", "content": system}, {"role": "user", "content": said}], max_tokens=8, logprobs=True
        )


def tokens(made: Warmed) -> int:
    return made.variants[0].tokens


def told(bundle: Path | str, variant: str, use: bool | None = None) -> str:
    return str(edgepack.plan(bundle, variant=variant, warm=use).choice.warm)


def resealed(made: Warmed, out: Path, variant: str, change: Callable[[Warm, bytes], tuple[Warm, bytes]]) -> Path:
    """A copy whose state was exchanged by whoever sealed it."""
    for file in ("LICENSE", *(each.path for each in open_bundle(made.path).manifest.files)):
        _copied(made, out, file)
    manifest = open_bundle(made.path).manifest
    kept = next(each for each in manifest.variants if each.id == variant)
    for each in kept.files:
        _copied(made, out, f"variants/{variant}/{each.path}")
    folder = out / "variants" / variant
    facts, state = change(files.decode((folder / FACTS).read_bytes()), (folder / STATE).read_bytes())
    changed = {FACTS: files.encode(facts), STATE: state}
    for name, data in changed.items():
        (folder / name).unlink()
        (folder / name).write_bytes(data)
    listed = [
        File(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in changed.items()
    ]
    others = [each for each in kept.files if each.path not in changed]
    kept = msgspec.structs.replace(kept, files=[*others, *listed])
    (out / MANIFEST).write_bytes(manifests.encode(msgspec.structs.replace(manifest, variants=[kept])))
    return out


def _copied(made: Warmed, out: Path, name: str) -> None:
    (out / name).parent.mkdir(parents=True, exist_ok=True)
    if not (out / name).exists():
        os.link(Path(made.path) / name, out / name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_answer_is_the_same_to_the_last_bit_and_the_system_prompt_is_not_evaluated(
    made: Warmed, fresh: dict[str, Result], variant: str
) -> None:
    found, expected = answer(made.path, variant), fresh[variant]
    assert (found.usage.cached_tokens, expected.usage.cached_tokens) == (tokens(made), 0)
    assert found.token_ids == expected.token_ids
    assert found.logprobs == expected.logprobs
    assert told(made.path, variant) == (
        f"warm: the first {tokens(made)} tokens of a system prompt are in the cache once it is loaded"
    )


@pytest.mark.parametrize("kind", ["convolutions", "delta rules"])
def test_layers_that_keep_a_state_are_kept_warm_as_well(kind: str, tmp_path: Path) -> None:
    cold = bundle_of(DECODERS[kind], tmp_path)
    made = keep_warm(cold, SYSTEM, tmp_path / "warm", VARIANTS)
    for variant in VARIANTS:
        found, expected = answer(made.path, variant), answer(cold, variant)
        assert (found.usage.cached_tokens, expected.usage.cached_tokens) == (tokens(made), 0)
        assert (found.token_ids, found.logprobs) == (expected.token_ids, expected.logprobs)


def test_it_is_another_bundle_made_of_the_first(made: Warmed, cold: Path) -> None:
    sealed = open_bundle(made.path)
    assert (sealed.manifest.parent, made.parent) == (open_bundle(cold).id, open_bundle(cold).id)
    assert [each.variant for each in made.variants] == list(VARIANTS)
    assert all(0 < each.tokens <= each.common < each.tokens + 128 for each in made.variants)
    again = keep_warm(made.path, SYSTEM, Path(made.path).with_name("again"), VARIANTS[:1])
    names = [file.path for file in open_bundle(again.path).variant(VARIANTS[0]).files]
    assert len(names) == len(set(names))


def test_whatever_the_user_begins_with_it_is_used(made: Warmed) -> None:
    with edgepack.load(made.path, variant=VARIANTS[0]) as model:
        for said in ("", " ", "\n", "1", "…", "é", "<|user|>"):
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": said}]
            assert model.chat(messages, max_tokens=1, reuse="exact").usage.cached_tokens == tokens(made)


@pytest.mark.parametrize("isolate", [False, True])
def test_another_system_prompt_is_evaluated_from_where_it_differs(made: Warmed, cold: Path, isolate: bool) -> None:
    system = f"{SYSTEM[:200]} And now for something else. {SYSTEM}"
    found = answer(made.path, VARIANTS[0], system, isolate=isolate)
    assert found.usage.cached_tokens < tokens(made)
    assert found.token_ids == answer(cold, VARIANTS[0], system).token_ids


@pytest.mark.parametrize(
    ("fact", "value"), [("engine", "another 1.0"), ("version of the engine", "0.1"), ("processor", "linux m68k"),
                        ("KV cache", "q8"), ("step", "64 tokens"), ("payload", "0" * 64)]
)  # fmt: skip
def test_a_state_of_another_engine_or_of_other_options_is_passed_over(
    made: Warmed, tmp_path: Path, fact: str, value: str
) -> None:
    def other(warm: Warm, state: bytes) -> tuple[Warm, bytes]:
        return msgspec.structs.replace(warm, made=warm.made | {fact: value}), state

    bundle = resealed(made, tmp_path / "other", VARIANTS[0], other)
    assert told(bundle, VARIANTS[0], True).startswith("not warm: it was made with ")


def of_another_version(warm: Warm, state: bytes) -> tuple[Warm, bytes]:
    return msgspec.structs.replace(warm, made=warm.made | {"version of the engine": "0.1"}), state


def damaged(warm: Warm, state: bytes) -> tuple[Warm, bytes]:
    return warm, state[:-1] + bytes([state[-1] ^ 1])


def cut(warm: Warm, state: bytes) -> tuple[Warm, bytes]:
    return warm, state[:100]


def of_fewer_tokens(warm: Warm, state: bytes) -> tuple[Warm, bytes]:
    return msgspec.structs.replace(warm, tokens=warm.tokens[:128]), state


def of_tokens_that_are_none(warm: Warm, state: bytes) -> tuple[Warm, bytes]:
    return msgspec.structs.replace(warm, tokens=[1 << 30] * len(warm.tokens)), state


def of_half_a_step(warm: Warm, state: bytes) -> tuple[Warm, bytes]:
    return msgspec.structs.replace(warm, tokens=warm.tokens[:100]), state


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "change", [of_another_version, damaged, cut, of_fewer_tokens, of_tokens_that_are_none, of_half_a_step]
)
def test_a_state_that_is_none_is_passed_over(
    made: Warmed,
    fresh: dict[str, Result],
    tmp_path: Path,
    variant: str,
    change: Callable[[Warm, bytes], tuple[Warm, bytes]],
) -> None:
    bundle = resealed(made, tmp_path / "other", variant, change)
    found = answer(bundle, variant, warm=True)
    assert (found.usage.cached_tokens, found.token_ids) == (0, fresh[variant].token_ids)


@pytest.mark.parametrize("data", [b"", b"{}", b"[" * 5000, b'{"version":1,"made":{},"tokens":[]}'])
def test_facts_that_are_none_are_told(made: Warmed, tmp_path: Path, data: bytes) -> None:
    bundle = resealed(made, tmp_path / "other", VARIANTS[0], lambda warm, state: (warm, state))
    listed = json.loads((bundle / MANIFEST).read_bytes())
    for file in listed["variants"][0]["files"]:
        if file["path"] == FACTS:
            file |= {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (bundle / MANIFEST).write_text(json.dumps(listed))
    (bundle / "variants" / VARIANTS[0] / FACTS).write_bytes(data)
    assert told(bundle, VARIANTS[0], True).startswith(f"not warm: its {FACTS} is damaged")
    assert answer(bundle, VARIANTS[0], warm=True).usage.cached_tokens == 0


@pytest.mark.usefixtures("elsewhere")
def test_a_state_that_was_made_elsewhere_is_taken_where_somebody_answers_for_it(made: Warmed) -> None:
    assert told(made.path, VARIANTS[0]).startswith("not warm: it was made elsewhere")
    assert answer(made.path, VARIANTS[0]).usage.cached_tokens == 0
    assert answer(made.path, VARIANTS[0], warm=True).usage.cached_tokens == tokens(made)


@pytest.mark.usefixtures("elsewhere")
def test_a_state_that_a_policy_admits_is_taken(made: Warmed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = signing.sign(resealed(made, tmp_path / "signed", VARIANTS[0], lambda warm, state: (warm, state)))
    policy = signing.policy(tmp_path / "policy.toml", "ours")
    with edgepack.load(bundle, policy=policy) as model:
        assert model.chat(
            [{"role": "system", "content": SYSTEM}, {"role": "user", "content": "Hi"}], max_tokens=1
        ).usage.cached_tokens
    monkeypatch.setenv("EDGEPACK_POLICY", str(policy))
    assert told(bundle, VARIANTS[0]).startswith("warm: ")


def test_a_load_can_go_without(made: Warmed) -> None:
    assert answer(made.path, VARIANTS[0], warm=False).usage.cached_tokens == 0
    assert told(made.path, VARIANTS[0], False) == "not warm: this load was told to go without"


@pytest.mark.parametrize("variant", VARIANTS[:2])
def test_states_that_were_damaged_with_care_leave_nothing_behind(made: Warmed, variant: str) -> None:
    bundle, chance = open_bundle(made.path), random.Random(7)
    state = (bundle.variant_path(variant) / STATE).read_bytes()
    begin = 20 + struct.unpack_from("<I", state, 16)[0]
    options = Options(context=512, threads=1, kv_cache="f32")
    session = runtime.find(variant.partition("-")[0]).open(
        bundle.variant_path(variant), bundle.manifest.decoder, options
    )
    assert isinstance(session, runtime.Snapshots)
    expected = session.forward([1, 2, 3])
    for _ in range(100):
        changed = bytearray(state)
        place = begin + 4 * chance.randrange(min(400, (len(state) - begin) // 4))
        struct.pack_into("<I", changed, place, chance.choice((0, 513, 1 << 31, (1 << 32) - 1, chance.getrandbits(32))))
        struct.pack_into("<I", changed, 12, crc32(memoryview(changed)[16:]))
        with suppress(ValueError):
            session.restore(bytes(changed))
        session.rewind(0)
    assert np.array_equal(session.forward([1, 2, 3]), expected)
    session.close()


def test_a_short_system_prompt_is_refused(cold: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a prefill takes them in steps of 128: there is no whole step to keep"):
        keep_warm(cold, "Be brief.", tmp_path / "out", VARIANTS[:1])
    assert not (tmp_path / "out").exists()


class Forgetful(FakeRuntime):
    """An engine that cannot save its state."""

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        return Without(super().open(variant, decoder, options))


class Without:
    def __init__(self, session: Session) -> None:
        self.device, self.forward, self.forward_all = session.device, session.forward, session.forward_all
        self.rewind, self.cancel, self.close = session.rewind, session.cancel, session.close
        self._session = session

    @property
    def length(self) -> int:
        return self._session.length


def test_an_engine_that_cannot_save_its_state_is_refused(cold: Path) -> None:
    bundle: Bundle = open_bundle(cold)
    runtimes = {"onnx": Forgetful()}
    choice = loading.plan(bundle, variant="onnx-f32", runtimes=runtimes).choice
    with (
        loading.open_candidate(bundle, choice, runtimes=runtimes) as model,
        pytest.raises(UsageError, match=r"^The engine of onnx-f32 cannot save its state"),
    ):
        warm.make(bundle, choice, model, SYSTEM)
