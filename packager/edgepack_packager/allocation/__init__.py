"""Allocation: each matrix of a variant gets the form that a goal is met in with the least loss.

``goals`` says what a variant must keep, ``sensitivity`` measures what each matrix loses, ``choosing`` picks, ``table``
is the recipe that says what was picked. This module joins them for the variants of a build.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

from edgepack.errors import UsageError
from edgepack.measuring.evaluate import mean
from edgepack_packager import coarse
from edgepack_packager.allocation import choosing, sensitivity, table
from edgepack_packager.allocation.choosing import Option
from edgepack_packager.allocation.goals import Goal, Least
from edgepack_packager.allocation.judging import Judge
from edgepack_packager.allocation.sensitivity import Sensitivity
from edgepack_packager.allocation.table import Line, Section
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.targets import FLOAT_BITS, Model, Request, Slot, Written

_STEP = 1024
"""Bytes to which the budget of a goal is found."""

_ALIKE = 0.99
"""Of the largest scheme's bytes, what another takes that is as large."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """A variant's choice: its request with the forms, what was chosen of each slot, and its sizes.

    ``scheme`` is the one by whose rule the forms are, "" where they were chosen one by one; ``remark`` says what was
    measured of the whole.
    """

    request: Request
    slots: Sequence[Slot]
    chosen: Sequence[Option]
    written: Written
    scheme: str = ""
    remark: str = ""

    @property
    def loss(self) -> float:
        """The divergence from the source that the forms are expected to cost, in nats, on the text of the measure."""
        return sum(option.loss for option in self.chosen)


class Allocator:
    """Chooses forms for the variants of one model, by what each of its matrices loses."""

    def __init__(self, model: Model, weights: Weights, measured: Sensitivity) -> None:
        self._model, self._weights, self._measured = model, weights, measured
        self._errors: dict[str, list[tuple[Slot, dict[str, dict[str, float]]]]] = {}

    def evened(self) -> Allocator:
        """Return one that trusts less in what was measured of single matrices, see ``sensitivity.evened``."""
        other = Allocator(self._model, self._weights, sensitivity.evened(self._measured))
        other._errors = self._errors
        return other

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
        return self._made(request, slots, choosing.choose(options, budget))

    def _made(self, request: Request, slots: Sequence[Slot], chosen: Sequence[Option], scheme: str = "") -> Allocation:
        pairs = zip(slots, chosen, strict=True)
        asked = replace(request, forms={name: option.form for slot, option in pairs for name in slot.tensors})
        return Allocation(asked, slots, chosen, asked.measure(self._model.decoder, self._model.dtype), scheme)

    def scheme(self, request: Request, goal: Goal) -> Allocation | None:
        """Return the forms of the largest scheme that a goal has room for; of several as large, that of least loss.

        None where it has room for none whose forms are all among those to choose from.
        """
        target, decoder = request.target, self._model.decoder
        names = [name for name, bits in target.schemes.items() if bits < FLOAT_BITS and name not in target.for_grids]
        found = [self._ruled(request, name) for name in names if not coarse.is_coarse(target, name)]
        held = [each for each in found if each and goal.holds(each.written, request, decoder)]
        most = max((each.written.tensor_bytes for each in held), default=0)
        largest = [each for each in held if each.written.tensor_bytes >= _ALIKE * most]
        return min(largest, key=lambda each: each.loss, default=None)

    def _ruled(self, request: Request, scheme: str) -> Allocation | None:
        slots, options = self._choices(request)
        forms = request.target.ruled(self._model.decoder, self._model.dtype, scheme)
        pairs = zip(slots, options, strict=True)
        chosen = [next((each for each in own if each.form == forms.get(slot.tensors[0])), None) for slot, own in pairs]
        known = [each for each in chosen if each is not None]
        return self._made(request, slots, known, scheme) if len(known) == len(slots) else None

    def _range(self, request: Request) -> tuple[int, int]:
        """Return the bytes of the smallest forms and of the largest."""
        slots, _ = self._choices(request)
        return sum(min(slot.forms.values()) for slot in slots), sum(max(slot.forms.values()) for slot in slots)

    def _choices(self, request: Request) -> tuple[Sequence[Slot], list[list[Option]]]:
        """Return the slots of a request's target and the options of each, whose errors are measured once."""
        target = request.target
        if target.name not in self._errors:
            slots = slots_of(request, self._model)
            self._errors[target.name] = [
                (slot, sensitivity.errors(target, self._model, self._weights, slot)) for slot in slots
            ]
        found = [(slot, sensitivity.losses(self._measured, errors)) for slot, errors in self._errors[target.name]]
        options = [[Option(form, size, lost[form]) for form, size in slot.forms.items()] for slot, lost in found]
        return [slot for slot, _ in found], options


def better(
    judge: Judge, choices: Sequence[Allocation], rival: Allocation | None, progress: Callable[[], None] | None = None
) -> Allocation:
    """Return the allocation that is measured to lose least, of some choices and the forms of a scheme ``rival``.

    It says what was measured. ``progress`` is called after each.
    """
    report = progress or (lambda: None)

    def measured(each: Allocation) -> tuple[float, float]:
        found = mean(judge.divergences(each.request.target, each.request.forms))
        report()
        return found

    lost = [(measured(each), each) for each in choices]
    found, kept = min(lost, key=lambda one: one[0])
    remark = "{:.3g} ± {:.2g} nats of loss measured on another text".format(*found)
    if rival is None:
        return replace(kept, remark=remark)
    theirs, scheme = measured(rival), f"the forms of {rival.scheme}"
    if theirs < found:
        remark = "{}: {:.3g} ± {:.2g} nats of loss measured on another text".format(f"{scheme} after all", *theirs)
        kept, theirs, scheme = rival, found, "those chosen for each matrix"
    return replace(kept, remark="{}, where {} lose {:.3g} ± {:.2g}".format(remark, scheme, *theirs))


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
        remarks += [made.remark] if made.remark else []
    lines = []
    for slot in slots_of(request, model):
        name = slot.tensors[0]
        if name in request.forms:
            form = request.forms[name]
            bits = f"{8 * slot.forms[form] / sum(prod(shapes[each]) for each in slot.tensors):.2f} bits"
            share = f", {lost[name] / made.loss:.1%} of the loss" if made is not None and made.loss else ""
            lines.append(Line(name, form, bits + share))
    return Section(f"{request.target.name}-{request.called}", "" if made is None else request.asked, remarks, lines)
