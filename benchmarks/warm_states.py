"""What engines make of states that somebody damaged with care, so that only the engine itself can notice.

    python benchmarks/warm_states.py WARM_BUNDLE --variant ID [--states N]

The checksum of each is made good again. The engine runs in a process of its own, and another takes over where one ends;
``taken`` states were evaluated further, ``refused`` ones were noticed, and what ended or hung a process is named.
"""

from __future__ import annotations

import argparse
import random
import struct
import subprocess
import sys
from collections import Counter
from zlib import crc32

from edgepack import runtime
from edgepack.bundle.files import VARIANTS, open_bundle
from edgepack.bundle.warm import STATE
from edgepack.device.planning import Candidate
from edgepack.loading import plan

_PREFIX, _SIZE = 16, 4  # of a sealed snapshot: edgepack.snapshot
ODD = (0, 1, 2, 255, 257, 512, 513, 1 << 31, (1 << 31) - 1, (1 << 32) - 1)


def damaged(state: bytes, seed: int) -> bytes:
    """Return a state with an odd number near its head, or anywhere, some bytes changed, or its end cut off."""
    chance, changed = random.Random(seed), bytearray(state)
    begin = _PREFIX + _SIZE + struct.unpack_from("<I", state, _PREFIX)[0]
    end, kind = len(state) - 4, seed % 5
    if kind == 4:
        del changed[begin + chance.randrange(end - begin) :]
    elif kind == 3:
        at = begin + chance.randrange(min(8000, end - begin))
        changed[at : at + 4] = bytes(chance.choice((0, 127, 128, 255, chance.randrange(256))) for _ in range(4))
    else:
        at = begin + 4 * chance.randrange((100, 2000, (end - begin) // 4)[kind])
        struct.pack_into("<I", changed, at, chance.choice((*ODD, chance.getrandbits(32))))
    struct.pack_into("<I", changed, _PREFIX - 4, crc32(memoryview(changed)[_PREFIX:]))
    return bytes(changed)


def restore(bundle: str, candidate: Candidate, first: int, last: int) -> None:
    """Restore the damaged states of these seeds, and print of each its seed before and a word after."""
    opened = open_bundle(bundle, verify="sizes")
    folder = opened.path / VARIANTS / candidate.variant
    state, engine = (folder / STATE).read_bytes(), runtime.find(candidate.runtime)
    session = engine.open(folder, opened.manifest.decoder, candidate.options)
    assert isinstance(session, runtime.Snapshots)
    for seed in range(first, last):
        print(seed, flush=True)
        try:
            session.restore(damaged(state, seed))
            session.forward([1, 2, 3])
            session.rewind(0)
        except ValueError:
            print("refused", flush=True)
        else:
            print("taken", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle")
    parser.add_argument("--variant", required=True)
    parser.add_argument("--states", type=int, default=1000)
    parser.add_argument("--first", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.first is not None:
        choice = plan(asked.bundle, variant=asked.variant, context=512, warm=False).choice
        restore(asked.bundle, choice, asked.first, asked.states)
        return
    first, found = 0, Counter[str]()
    while first < asked.states:
        begun, words = first, [__file__, asked.bundle, "--variant", asked.variant, "--states", str(asked.states)]
        process = subprocess.Popen(
            [sys.executable, *words, "--first", str(first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip().isdigit():
                first = int(line) + 1
            else:
                found[line.strip()] += 1
        if code := process.wait():
            found[f"ended by {code} at {first - 1}"] += 1
        if first == begun:
            sys.exit("The engine does not open.")
    print(asked.variant, dict(found))


if __name__ == "__main__":
    main()
