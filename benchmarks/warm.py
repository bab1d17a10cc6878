"""What a warm bundle gains: the first token with and without the state of a system prompt, and what the state costs.

    python benchmarks/warm.py BUNDLE --system FILE [--variant ID]... [--loads N]

Each load is a process of its own, cold and warm in turn; the least of each is reported: others may disturb, and nothing
makes a load faster than it is. It also computes the state with one thread and with all, in a context of 1024 and of
4096, and says whether the bits are the same.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import edgepack
from edgepack.bundle.files import VARIANTS, open_bundle
from edgepack.bundle.warm import FACTS, STATE, decode
from edgepack.device.hardware import detect
from edgepack_ship.warming import keep_warm

SAID = "Where is breakfast?"
CIRCUMSTANCES = ((1, 1024), (1, 4096), (detect().threads, 1024), (detect().threads, 4096))


def first_token(bundle: str, variant: str, system: Path, warm: bool) -> dict[str, float]:
    """Return the seconds of the load and of the first token after it, and the tokens that were not evaluated."""
    with edgepack.load(bundle, variant=variant, warm=warm) as model:
        said = [{"role": "system", "content": system.read_text("utf-8").removesuffix("\n")}]
        result = model.chat([*said, {"role": "user", "content": SAID}], max_tokens=1)
    timings, usage = result.timings, result.usage
    return {
        "load": timings.load_s or 0,
        "first": timings.ttft_s or 0,
        "prompt": usage.prompt_tokens,
        "cached": usage.cached_tokens,
    }


def in_a_process(bundle: str, variant: str, system: Path, warm: bool) -> dict[str, float]:
    """``first_token``, in a process of its own."""
    command = [
        sys.executable,
        __file__,
        bundle,
        "--system",
        str(system),
        "--variant",
        variant,
        "--once",
        str(int(warm)),
    ]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def states(bundle: str, variant: str, tokens: list[int]) -> set[str]:
    """Return the digests of a state, one for each of the circumstances unless they are the same."""
    found = set()
    for threads, context in CIRCUMSTANCES:
        with edgepack.load(bundle, variant=variant, threads=threads, context=context) as model:
            desk, chunk = model._desk, model.setup.chunk

            def state(desk=desk, chunk=chunk):  # type: ignore[no-untyped-def]
                for begin in range(0, len(tokens), chunk):
                    desk.forward(tokens[begin : begin + chunk])
                return desk.snapshot(len(tokens))

            found.add(sha256(desk.call(state)).hexdigest())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--system", type=Path, required=True)
    parser.add_argument("--variant", action="append", required=True)
    parser.add_argument("--loads", type=int, default=3)
    parser.add_argument("--once", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.once is not None:
        print(json.dumps(first_token(asked.bundle, asked.variant[0], asked.system, bool(asked.once))))
        return
    print("| variant | tokens | state | load, first token: cold | warm | the same bits |\n|---|---|---|---|---|---|")
    with TemporaryDirectory() as scratch:
        for variant in asked.variant:
            text = asked.system.read_text("utf-8").removesuffix("\n")
            made = keep_warm(asked.bundle, text, Path(scratch) / variant, [variant])
            folder = open_bundle(made.path, verify="sizes").path / VARIANTS / variant
            runs = [
                (
                    in_a_process(made.path, variant, asked.system, False),
                    in_a_process(made.path, variant, asked.system, True),
                )
                for _ in range(asked.loads)
            ]
            cold, warm = (min(each, key=lambda run: run["load"] + run["first"]) for each in zip(*runs, strict=True))
            same = len(states(asked.bundle, variant, decode((folder / FACTS).read_bytes()).tokens)) == 1
            size = (folder / STATE).stat().st_size / 2**20
            print(
                f"| {variant} | {warm['cached']} of {warm['prompt']} | {size:.1f} MiB "
                f"| {cold['load']:.2f} + {cold['first']:.2f} s | {warm['load']:.2f} + {warm['first']:.2f} s "
                f"| {'yes' if same else 'NO'} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
