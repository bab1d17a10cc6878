"""What is given again of a bundle's source, where a bundle is built from what it records."""

from __future__ import annotations

from typing import Annotated

import typer

Source = Annotated[
    str | None,
    typer.Option(
        help="The folder or GGUF file that it was made of, where that is in no repository.",
        metavar="FOLDER",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        "--adapter",
        help="An adapter that was merged. Repeatable, in order.",
        metavar="FOLDER[:SCALE]",
        show_default=False,
    ),
]
