"""The recipe: what a build makes of a model, and the requests for single variants that it comes down to."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.errors import UsageError
from edgepack_packager import targets
from edgepack_packager.targets import Model, Request


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every target in every quantisation, for sequences of up to ``context`` tokens (None: see ``families.describe``).

    ``unproven`` allows a target whose engine is not on this host.
    """

    targets: tuple[str, ...]
    quants: tuple[str, ...]
    context: int | None = None
    unproven: bool = False

    def requests(self, model: Model) -> list[Request]:
        """Return the variants to build, each once. Raises ``UsageError`` for a name that no target knows."""
        found: dict[str, Request] = {}
        for name in self.targets:
            target = targets.find(name)
            for quant in self.quants:
                request = Request(target, quant, target.scheme(quant, model))
                found.setdefault(request.id, request)
        if not found:
            raise UsageError("There is nothing to build.", hint="Name a target and a quantisation.")
        return list(found.values())
