"""``edgepack verify``: every byte against the manifest, who signed it, and on demand each vector through its engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import TRUST, AsJson, BundleId, BundlePath, PolicyFile
from edgepack.cli.screen import as_json, bar, next_step, out, say, steps, styled, table, use_of

if TYPE_CHECKING:
    from edgepack.bundle.files import Bundle
    from edgepack.text.replay import Replay
    from edgepack.trust.admitting import Signer

WithReplay = Annotated[
    bool, typer.Option("--replay", help="Run the tokenizer's, the template's and each variant's own vectors as well.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key",
        help="Refuse a bundle that this public key did not sign.",
        metavar="FILE",
        show_default=False,
        rich_help_panel=TRUST,
    ),
]


@examples(
    "edgepack verify demo.edgepack",
    "edgepack verify demo.edgepack --replay --json",
    "edgepack verify demo.edgepack --key release.pub",
)
def verify(
    bundle: BundlePath,
    replay: WithReplay = False,
    id: BundleId = None,
    key: KeyFile = None,
    policy: PolicyFile = None,
    json: AsJson = False,
) -> None:
    """Compare every file of a bundle with its manifest, and ask who signed it; with --replay, run its vectors here."""
    from edgepack.bundle.files import open_bundle

    opened = open_bundle(bundle, verify="sizes", id=id)
    signers = _signers(opened, key, policy)
    _check(opened)
    replays = replayed(opened) if replay else []
    if json:
        as_json(_as_mapping(opened, replays, signers))
    else:
        show(opened, replays, signers)
    refuse_differing(replays)
    if not json:
        words = (use_of(opened.manifest), str(bundle)) if replay else ("verify", str(bundle), "--replay")
        next_step("edgepack", *words)


def _signers(bundle: Bundle, key: Path | None, policy: Path | None) -> list[Signer]:
    """Return who signed: a key that was named, and those of the policies that apply. Raises ``TrustError``."""
    from edgepack.trust.admitting import admit_bundle, vouched

    return [*admit_bundle(bundle, policy), *([] if key is None else [vouched(bundle, key)])]


def _check(bundle: Bundle) -> None:
    with bar() as progress:
        task = progress.add_task("Checking sha256", total=bundle.size())
        bundle.check(progress=lambda _, count: progress.advance(task, count))


def refuse_differing(replays: Sequence[Replay]) -> None:
    """Raise ``EngineError`` for the first replay that does not give what its bundle records."""
    from edgepack.errors import EngineError

    for wrong in replays:
        if wrong.verdict == "differs":
            raise EngineError(
                f"{wrong.name} does not give here what its bundle records: {wrong.reason.rstrip('.')}.",
                hint="The bundle is whole, so the engine is at fault: try another version or another variant.",
            )


def replayed(bundle: Bundle) -> list[Replay]:
    """Return what the tokenizer's, the template's and each variant's own vectors give on this machine."""
    from dataclasses import replace

    from edgepack.device.hardware import detect
    from edgepack.measuring.replay import replay_variant
    from edgepack.text.opening import text_side
    from edgepack.text.replay import replay_text

    hardware = detect()
    with steps() as progress:
        bundles = {"": bundle} if bundle.draft is None else {"": bundle, "draft: ": bundle.draft}
        task = progress.add_task("Replaying", total=sum(1 + len(each.manifest.variants) for each in bundles.values()))
        replays = []
        for place, each in bundles.items():
            found = replay_text(each.manifest, *text_side(each))
            progress.advance(task)
            for variant in each.manifest.variants:
                found.append(replay_variant(each, variant, hardware))
                progress.advance(task)
            replays += [replace(replay, name=place + replay.name) for replay in found]
    return replays


def _as_mapping(bundle: Bundle, replays: Sequence[Replay], signers: Sequence[Signer]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "id": bundle.id,
        "name": bundle.manifest.name,
        "files": len(bundle.files()),
        "bytes": bundle.size(),
        "foreign": list(bundle.foreign),
        "absent": list(bundle.absent),
        "signed": bundle.signature() is not None,
        "signers": [asdict(each) for each in signers],
        "replays": [asdict(each) for each in replays],
    }


def show(bundle: Bundle, replays: Sequence[Replay], signers: Sequence[Signer]) -> None:
    """Print what was compared, who signed, and what each replay gave."""
    from rich.text import Text

    from edgepack.device.memory import human

    console = out()
    count = len(bundle.files())
    say(console, styled("bold", bundle.manifest.name, f"  sha256:{bundle.id}"))
    said = f": {count} files, {human(bundle.size())}, every size and sha256 as the manifest says"
    console.print(styled("green", "sound", said))
    for one in signers:
        pinned = f" of {one.policy}" if one.policy else ""
        say(console, styled("green", "signed", f" by {one.key}{pinned}, {one.kind} sha256:{one.fingerprint[:12]}"))
    if not signers and bundle.signature() is not None:
        say(console, Text("signed, and nobody was asked for: name a key with --key, or a --policy", "yellow"))
    if bundle.absent:
        say(console, Text(f"not in this copy: {', '.join(bundle.absent)}", "yellow"))
    if bundle.foreign:
        say(console, Text(f"passed over, and not the bundle's: {', '.join(bundle.foreign)}", "yellow"))
    if not replays:
        return
    colors = {"same": "green", "differs": "bold red", "skipped": "yellow"}
    rows = table("replayed", "verdict", "compared", "", right=("compared",))
    for each in replays:
        rows.add_row(each.name, Text(each.verdict, colors[each.verdict]), str(each.checked), Text(each.reason))
    console.print()
    console.print(rows)
