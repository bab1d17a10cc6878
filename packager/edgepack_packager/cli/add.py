"""``edgepack add``: further variants of a model that is packed already."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack_packager.cli import again
from edgepack_packager.cli import build_options as asks

Targets = Annotated[list[str], typer.Option("--target", "-t", help="gguf, mlx or onnx. Repeatable.", metavar="TARGET")]
Quants = Annotated[
    list[str],
    typer.Option(
        "--quant", "-q", help="As of `edgepack build`: q4, or gguf:q5_k_m. Repeatable.", metavar="[TARGET:]QUANT"
    ),
]
Version = Annotated[
    str | None,
    typer.Option(
        "--bundle-version", help="The new bundle's version. Default: the old one's.", metavar="TEXT", show_default=False
    ),
]
Sequence = Annotated[
    int | None,
    typer.Option(help="The new bundle's sequence. Default: the old one's.", metavar="NUMBER", show_default=False),
]


@examples(
    "edgepack add smollm2-135m.edgepack -t mlx -q 8bit -o with-mlx.edgepack",
    "edgepack add mine.edgepack -t gguf -q q8 --source ./mine -o 2.edgepack",
)
def add(
    bundle: BundlePath,
    target: Targets,
    quant: Quants,
    out: asks.Out = None,
    force: asks.Force = False,
    kv_cache: asks.KvCache = "f32",
    quality: asks.Quality = None,
    calibrate: asks.Calibrate = None,
    max_kl: asks.MaxKl = None,
    receipt: asks.Receipt = None,
    bundle_version: Version = None,
    sequence: Sequence = None,
    source: again.Source = None,
    adapter: again.Adapters = None,
    json: AsJson = False,
) -> None:
    """Add proven variants to a packed model, in a new bundle: the old ones are copied, not built again."""
    from edgepack.bundle.files import open_bundle
    from edgepack.cli import screen
    from edgepack.cli.interrupts import Interrupts
    from edgepack.extras import needed, require
    from edgepack_packager.cli.bar import Bar
    from edgepack_packager.cli.build import show

    opened = open_bundle(bundle, verify="sizes")
    with needed("A build", "build"):
        require("A build", "build")
        from edgepack_packager import adding
        from edgepack_packager.recorded import Given

    wanted = adding.Wanted(tuple(target), tuple(quant), kv_cache, quality, max_kl, bundle_version, sequence)
    given = Given(source, tuple(adapter or ()), calibrate, receipt)
    with Interrupts() as interrupts, Bar(interrupts) as progress:
        built = adding.add(opened, wanted, given, out, force=force, progress=progress)
    show(built, json)
    if not json:
        screen.next_step("edgepack", screen.use_of(built.manifest), str(built.path))
