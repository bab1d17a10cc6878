"""What ``emulated.py`` runs on the emulated device: a prompt and some tokens, with marks between.

    python emulated_worker.py BUNDLE VARIANT PROMPT DECODED

On one thread. The plugin keeps the counts.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

from edgepack.bundle.files import open_bundle
from edgepack.device.hardware import detect
from edgepack.device.limits import default_kv_cache
from edgepack.runtime import Options, find

MARK = 0x7ED6ED6  # as in emulated_count.c


def mark() -> None:
    """Have the plugin write down how many instructions there were."""
    with suppress(ProcessLookupError):
        os.getpgid(MARK)


def main() -> None:
    """Load a variant, evaluate a prompt once for what only the first time costs, and then count."""
    bundle, described = open_bundle(sys.argv[1], verify="sizes"), sys.argv[2]
    prompt, decoded = (int(each) for each in sys.argv[3:])
    variant = bundle.variant(described)
    runtime = find(variant.runtime)
    kv_cache = default_kv_cache(variant.quantization.scheme, runtime.probe(detect()).kv_caches)
    options = Options(context=prompt + decoded, threads=1, kv_cache=kv_cache)
    session = runtime.open(bundle.variant_path(described), bundle.manifest.decoder, options)
    ids = [5 + 37 * place % 200 for place in range(prompt)]
    session.forward(ids)
    session.rewind(0)
    mark()
    session.forward(ids)
    mark()
    for place in range(decoded):
        session.forward([5 + place])
    mark()
    session.close()


if __name__ == "__main__":
    main()
