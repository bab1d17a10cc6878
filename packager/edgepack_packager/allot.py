"""The variants of a build whose forms are chosen: by a measure before they are written, and by their proof after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from edgepack.errors import UsageError
from edgepack_packager import allocation, calibration, seal
from edgepack_packager.allocation import Allocation, Allocator, judging, sensitivity
from edgepack_packager.allocation.goals import Goal, Least
from edgepack_packager.allocation.judging import Judge
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
    """What was chosen for a build's variants. ``requests`` are all of them, ``made`` those choices by id.

    ``notes`` say of which the forms are a scheme's after all.
    """

    def __init__(self, ready: Prepared, weights: Weights, model: Model, progress: Progress) -> None:
        self._goals = {each.id: goal for each in ready.requests if (goal := _goal(ready, each))}
        self.made: dict[str, Allocation] = {}
        self.requests = list(ready.requests)
        self.notes: list[str] = []
        if not self._goals:
            return
        progress.stage("Measuring what each matrix may lose", sensitivity.runs(weights.decoder))
        texts = sensitivity.texts(ready.passes)
        self._allocator = Allocator(model, weights, sensitivity.measure(weights, model, texts, progress.advance))
        progress.stage("Choosing forms", len(self._goals))
        for request in filter(lambda each: each.id in self._goals, ready.requests):
            self.made[request.id] = self._allocator.allocate(request, self._goals[request.id])
            progress.advance()
        self._judge(_judging(ready, weights), weights, model, progress)
        self.requests = [self.made[each.id].request if each.id in self.made else each for each in ready.requests]

    def _judge(self, texts: Sequence[Sequence[int]], weights: Weights, model: Model, progress: Progress) -> None:
        """Measure each choice, another that is more even, and the scheme that the goal has room for; keep the best.

        A limit of the loss is judged by the proof.
        """
        goals = {variant: goal for variant, goal in self._goals.items() if not isinstance(goal, Least)}
        if not goals or not texts:
            return
        progress.stage("Measuring what was chosen, and the schemes in its bytes", 1 + 3 * len(goals))
        judge, even = Judge(weights, model, texts), self._allocator.evened()
        progress.advance()
        for variant, goal in goals.items():
            request = self.made[variant].request
            choices = [self.made[variant], even.allocate(request, goal)]
            rival = self._allocator.scheme(request, goal)
            self.made[variant] = allocation.better(judge, choices, rival, progress.advance)
            if self.made[variant].scheme:
                self.notes.append(f"{variant}: {self.made[variant].remark}.")
                progress.warn(self.notes[-1])

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


def _judging(ready: Prepared, weights: Weights) -> Sequence[Sequence[int]]:
    """Return windows of ids that no choice of forms knows: of what calibrates, or of a text for this."""
    if ready.corpus is None:
        return ()
    told = calibration.told(ready.corpus, ready.tokenizer, seal.text_of(ready.model), ready.vectors.chat)
    return judging.texts(told, ready.tokenizer, weights.decoder)


def _measured(part: Part) -> float | None:
    """Return the divergence of a variant that missed nothing but the limit of it, None for any other."""
    if not part.verdict.missed or not all(each.startswith("loss.kl ") for each in part.verdict.missed):
        return None
    losses = msgspec.convert(part.verdict.evidence["loss"], dict[str, dict[str, float]])
    return losses.get("text", losses["random"])["kl"]
