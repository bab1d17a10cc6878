"""The variants of a build whose forms are chosen: by a measure before they are written, and by their proof after it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edgepack.errors import UsageError
from edgepack_packager.allocation import Allocation, Allocator, sensitivity
from edgepack_packager.allocation.goals import Goal, Least
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.prepare import Prepared
from edgepack_packager.progress import Progress
from edgepack_packager.seal import Part
from edgepack_packager.targets import Model, Request

_TRIES = 3
"""Proofs that a variant may take beyond the first to keep its limit."""

_MARGIN = 0.95
"""Of what should keep it: the next try is to be the last one."""


class Allotment:
    """What was chosen for a build's variants. ``requests`` are all of them, ``made`` those choices by id."""

    def __init__(self, ready: Prepared, weights: Weights, model: Model, progress: Progress) -> None:
        self._goals = {each.id: goal for each in ready.requests if (goal := _goal(ready, each))}
        self.made: dict[str, Allocation] = {}
        self.requests = list(ready.requests)
        if not self._goals:
            return
        progress.stage("Measuring what each matrix may lose", sensitivity.runs(weights.decoder))
        texts = sensitivity.texts(ready.passes)
        self._allocator = Allocator(model, weights, sensitivity.measure(weights, model, texts, progress.advance))
        progress.stage("Choosing forms", len(self._goals))
        self.requests = [self._chosen(request, progress) for request in self.requests]

    def _chosen(self, request: Request, progress: Progress) -> Request:
        if request.id not in self._goals:
            return request
        self.made[request.id] = self._allocator.allocate(request, self._goals[request.id])
        progress.advance()
        return self.made[request.id].request

    def settled(self, part: Part, again: Callable[[Request], Part]) -> Part:
        """Return a variant that keeps the limit of its loss, where its goal is one, else the part as it is.

        ``again`` writes and proves another choice: what was expected to lose less, by as much as the proof found more
        than was expected.
        """
        goal = self._goals.get(part.request.id)
        for _ in range(_TRIES):
            found = _measured(part)
            if not isinstance(goal, Least) or found is None:
                break
            before = self.made[part.request.id]
            try:
                made = self._allocator.within(before.request, _MARGIN * before.loss * goal.kl / found)
            except UsageError:  # no form loses so little
                break
            part = again(made.request)
            self.made[part.request.id] = made
        return part


def _goal(ready: Prepared, request: Request) -> Goal | None:
    """Return what a request's forms are chosen by, None where they were given, or follow a scheme."""
    return ready.recipe.goal(request.asked) if request.called and not request.forms else None


def _measured(part: Part) -> float | None:
    """Return the divergence of a variant that missed nothing but the limit of it, None for any other."""
    if not part.verdict.missed or not all(each.startswith("loss.kl ") for each in part.verdict.missed):
        return None
    losses = msgspec.convert(part.verdict.evidence["loss"], dict[str, dict[str, float]])
    return losses.get("text", losses["random"])["kl"]
