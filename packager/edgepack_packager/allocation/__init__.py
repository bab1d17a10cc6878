"""Allocation: each matrix of a variant gets the form that a goal is met in with the least loss.

``goals`` says what a variant must keep, ``sensitivity`` measures what each matrix loses, ``choosing`` picks, ``table``
is the recipe that says what was picked. This module joins them for the variants of a build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from edgepack.errors import UsageError
from edgepack_packager.allocation import choosing, sensitivity, table
from edgepack_packager.allocation.choosing import Option
from edgepack_packager.allocation.goals import Goal, Least
from edgepack_packager.allocation.sensitivity import Sensitivity
from edgepack_packager.allocation.table import Line, Section
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.targets import Model, Request, Slot, Written

_STEP = 1024
"""Bytes to which the budget of a goal is found."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """A variant's choice: its request with the forms, what was chosen of each slot, and its sizes."""

    request: Request
    slots: Sequence[Slot]
    chosen: Sequence[Option]
    written: Written

    @property
    def loss(self) -> float:
        """The divergence from the source that the forms are expected to cost, in nats, on the text of the measure."""
        return sum(option.loss for option in self.chosen)


class Allocator:
    """Chooses forms for the variants of one model, by what each of its matrices loses."""

    def __init__(self, model: Model, weights: Weights, measured: Sensitivity) -> None:
        self._model, self._weights, self._measured = model, weights, measured
        self._options: dict[str, tuple[Sequence[Slot], list[list[Option]]]] = {}

    def allocate(self, request: Request, goal: Goal) -> Allocation:
        """Return the choice of least loss within a goal; of ``Least``, that of the fewest bytes.

        Raises ``UsageError`` where no choice meets it.
        """
        if isinstance(goal, Least):
            return self.within(request, goal.kl)
        check(request, goal, self._model)
        decoder = self._model.decoder
        return self._largest(request, lambda one: goal.holds(one.written, request, decoder))

    def within(self, request: Request, loss: float) -> Allocation:
        """Return the choice of the fewest bytes that is expected to lose no more than ``loss`` nats.

        Raises ``UsageError`` where none does.
        """
        least, most = self._range(request)
        best = self._at(request, most)
        if best.loss > loss:
            raise UsageError(
                f"{request.target.name} is expected to lose {best.loss:.3g} nats at least, more than {loss:.3g}.",
                hint="Allow more with --max-kl, or build f16.",
            )
        low, high = least - 1, most
        while high - low > _STEP:
            middle = (low + high) // 2
            low, high = (low, middle) if self._at(request, middle).loss <= loss else (middle, high)
        return self._at(request, high)

    def _largest(self, request: Request, holds: Callable[[Allocation], bool]) -> Allocation:
        """Return the choice of the largest budget that holds, where the smallest does."""
        low, most = self._range(request)
        if holds(whole := self._at(request, most)):
            return whole
        high = most
        while high - low > _STEP:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(self._at(request, middle)) else (low, middle)
        return self._at(request, low)

    def _at(self, request: Request, budget: int) -> Allocation:
        slots, options = self._choices(request)
        chosen = choosing.choose(options, budget)
        pairs = zip(slots, chosen, strict=True)
        asked = replace(request, forms={name: option.form for slot, option in pairs for name in slot.tensors})
        return Allocation(asked, slots, chosen, asked.measure(self._model.decoder, self._model.dtype))

    def _range(self, request: Request) -> tuple[int, int]:
        """Return the bytes of the smallest forms and of the largest."""
        slots, _ = self._choices(request)
        return sum(min(slot.forms.values()) for slot in slots), sum(max(slot.forms.values()) for slot in slots)

    def _choices(self, request: Request) -> tuple[Sequence[Slot], list[list[Option]]]:
        """Return the slots of a request's target and the options of each, measured once."""
        target = request.target
        if target.name not in self._options:
            slots = slots_of(request, self._model)
            losses = [sensitivity.losses(self._measured, target, self._model, self._weights, slot) for slot in slots]
            options = [
                [Option(form, size, lost[form]) for form, size in slot.forms.items()]
                for slot, lost in zip(slots, losses, strict=True)
            ]
            self._options[target.name] = slots, options
        return self._options[target.name]


def slots_of(request: Request, model: Model) -> Sequence[Slot]:
    """Return the slots of a request's target that have forms to choose from."""
    return [slot for slot in request.target.slots(model.decoder, model.dtype) if slot.forms]


def check(request: Request, goal: Goal, model: Model) -> None:
    """Raise ``UsageError`` for a goal that not even the smallest forms meet, which says what those take."""
    forms = {name: next(iter(slot.forms)) for slot in slots_of(request, model) for name in slot.tensors}
    least = replace(request, forms=forms).measure(model.decoder, model.dtype)
    if not goal.holds(least, request, model.decoder):
        raise UsageError(
            f"{request.asked} cannot be met by {request.target.name}: the least is "
            f"{goal.told(least, request, model.decoder)}.",
            hint="Allow more, pack a shorter --context, or take a smaller model.",
        )


def recipe(
    requests: Sequence[Request], made: Mapping[str, Allocation], model: Model, text: tuple[str, str] | None
) -> str | None:
    """Return the recipe of those requests that have forms, None where none has any.

    ``made`` has the allocations by the request's id, where they were not given. ``text`` is what was
    calibrated with: its name and the sha256 of its words.
    """
    sections = [_section(request, made.get(request.id), model) for request in requests if request.forms]
    return table.write(sections, text) if sections else None


def _section(request: Request, made: Allocation | None, model: Model) -> Section:
    shapes = dict(model.decoder.tensors())
    written = request.measure(model.decoder, model.dtype)
    remarks = [f"{written.bits(model.decoder)} bits a weight, {written.data_bytes / 1e6:.1f} MB of weights"]
    lost: Mapping[str, float] = {}
    if made is not None:
        lost = {slot.tensors[0]: option.loss for slot, option in zip(made.slots, made.chosen, strict=True)}
        remarks.append(f"{made.loss:.3g} nats of loss expected on the text")
    lines = []
    for slot in slots_of(request, model):
        name = slot.tensors[0]
        if name in request.forms:
            form = request.forms[name]
            bits = f"{8 * slot.forms[form] / sum(prod(shapes[each]) for each in slot.tensors):.2f} bits"
            share = f", {lost[name] / made.loss:.1%} of the loss" if made is not None and made.loss else ""
            lines.append(Line(name, form, bits + share))
    return Section(f"{request.target.name}-{request.called}", "" if made is None else request.asked, remarks, lines)
