"""The recipe: what a build makes of a model, and the requests for single variants that it comes down to."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from edgepack.bundle.manifest import Chat
from edgepack.errors import UsageError
from edgepack.runtime import KvCache
from edgepack_packager import allocation, targets
from edgepack_packager.allocation import goals
from edgepack_packager.allocation.goals import Goal
from edgepack_packager.allocation.table import Table
from edgepack_packager.calibration.text import AUTO, BUILT_IN
from edgepack_packager.targets import CALIBRATED_BITS, SUFFIXES, FixesKvCache, Model, Request, Scales, Target

Quality = Literal["plain", "searched", "calibrated"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every target in every quantisation, for sequences of up to ``context`` tokens (None: see ``families.describe``).

    A quantisation may be for one target alone: "gguf:q5_k_m". Capitals in the names of both do not matter.
    ``unproven`` leaves the proof out: no engine and no reference runs, nothing is read back, and a target needs no
    engine on this host. ``name`` is the bundle's (None: the source's), and
    ``accept_licence`` says that the builder read and accepted a licence that asks for it. ``date`` is the day that a
    chat template prints (YYYY-MM-DD, None: ``battery.DAY``), or "passed" where the application must pass it.
    ``kv_cache`` is the type of the KV cache of those targets whose payloads have it built in. ``max_kl`` is what a
    variant may lose on text, in nats (None: what it loses is only reported). ``no_chat`` leaves the chat templates out:
    the bundle continues texts. ``draft`` names another model, which is packed alike and guesses what this one says.
    ``thinks`` says of a model whose template does not that it thinks before it answers: ``text.thinking.UNSAID``.
    ``quality`` is what chooses the scales of all schemes of fewer than 8 bits: "plain", the rule of their peers, so
    that those without any are refused; "searched", their least squared error; "calibrated", that error weighed by what
    a text uses; None, what each scheme has by its name. ``calibrate`` is that text, and asks for it: a file,
    ``calibration.text.BUILT_IN`` (None: that, where it is to be calibrated) or ``AUTO``, which the model writes itself.
    ``receipt`` is the text that variants are judged on, a file or ``proof.held_out.BUILT_IN``; None measures as much of
    the built-in one as takes seconds.
    Where a goal of ``allocation.goals`` stands for a quantisation ("4.5bits", "900MB", "pi5-4gb", "auto"), the forms of
    matrices are chosen for it: for "auto", the fewest bytes within ``max_kl``. ``table`` is the file of a recipe, which
    says what forms further variants have.
    ``adapters`` are merged into it one after the other, each "FOLDER" or "FOLDER:scale".
    ``exporter`` is one of ``exporting.EXPORTERS``, which writes in the place of edgepack's own targets; what only those
    know is refused beside it. ``source_key`` is the PEM file of the public key that must have signed the source.
    """

    targets: tuple[str, ...]
    quants: tuple[str, ...]
    context: int | None = None
    unproven: bool = False
    name: str | None = None
    accept_licence: bool = False
    date: str | None = None
    kv_cache: KvCache = "f32"
    max_kl: float | None = None
    no_chat: bool = False
    draft: str | None = None
    thinks: bool = False
    adapters: tuple[str, ...] = ()
    calibrate: str | None = None
    quality: Quality | None = None
    receipt: str | None = None
    table: str | None = None
    exporter: str | None = None
    source_key: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None and not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*", self.name):
            raise UsageError(
                f"{self.name!r} cannot be a bundle's name.", hint="Use letters, digits and the signs . _ + - in it."
            )
        if self.exporter is not None and (alone := self._of_targets_alone()):
            raise UsageError(
                f"{alone} was given with --exporter {self.exporter}, which knows nothing of it.",
                hint="Leave one of them out.",
            )
        if self.max_kl is not None and not self.max_kl >= 0:
            raise UsageError(f"{self.max_kl:g} nats cannot be a limit of the loss.", hint="Give --max-kl 0 or more.")
        if self.max_kl is not None and self.unproven:
            raise UsageError(
                "--max-kl was given with --unproven, which measures no loss.", hint="Leave one of them out."
            )
        if self.unproven and any(map(self.goal, self.quants)):
            raise UsageError(
                "A goal was given with --unproven, which runs no reference to choose by.", hint="Leave one of them out."
            )
        if self.quality in ("plain", "searched") and (self.table is not None or any(map(self.goal, self.quants))):
            raise UsageError(
                f"--quality {self.quality} was given with a goal or a recipe, whose scales a text chooses.",
                hint="Leave one of them out.",
            )
        if self.calibrate is not None and self.quality not in (None, "calibrated"):
            raise UsageError(
                f"--calibrate was given with --quality {self.quality}, which asks no text.",
                hint="Leave one of them out: --calibrate means --quality calibrated.",
            )
        if self.calibration_text is not None and self.unproven:
            raise UsageError(
                f"{'--quality calibrated' if self.calibrate is None else '--calibrate'} was given with --unproven, "
                "which runs no reference.",
                hint="Leave one of them out, or take --quality searched.",
            )
        if self.receipt is not None and self.unproven:
            raise UsageError(
                "--receipt was given with --unproven, which measures no loss.", hint="Leave one of them out."
            )
        if self.date is not None and self.no_chat:
            raise UsageError("--date was given with --no-chat, which leaves out what prints it.", hint="Leave one out.")
        if self.context == 1:
            raise UsageError(
                "A context of 1 token holds a prompt and no answer.", hint="Choose a --context of 2 or more."
            )
        if self.thinks and self.no_chat:
            raise UsageError(
                "--thinks was given beside --no-chat.", hint="Leave one of them out: a thought is a chat's."
            )
        if self.date is not None and self.date != "passed" and not _is_day(self.date):
            raise UsageError(f"The date {self.date!r} is not a day.", hint="Write it as YYYY-MM-DD, or 'passed'.")

    def _of_targets_alone(self) -> str | None:
        """Return the first option that was given and that only edgepack's own targets and their proof can honour."""
        asked = {
            "--adapter": self.adapters,
            "--calibrate": self.calibrate,
            "--draft": self.draft,
            "--kv-cache": self.kv_cache != "f32",
            "--max-kl": self.max_kl is not None,
            "--quality": self.quality,
            "--receipt": self.receipt,
            "--recipe": self.table,
            "--unproven": self.unproven,
        }
        return next((option for option, given in asked.items() if given), None)

    @property
    def calibration_text(self) -> str | None:
        """The text that it calibrates with, by its name; None for none."""
        return self.calibrate or (BUILT_IN if self.quality == "calibrated" else None)

    def goal(self, quant: str) -> Goal | None:
        """Return the goal that a quantisation is, None for a scheme. Raises as ``goals.read``."""
        return goals.read(quant.rpartition(":")[2], self.max_kl)

    def text(self, given: Table | None) -> str | None:
        """Return the name of the text that variants are calibrated with, None for none.

        What is chosen by a measure needs one, and so does a recipe that says so. Raises ``UsageError`` where that is a
        file, which only the builder has.
        """
        said = given.calibrate if given else None
        if given is not None and said is not None and self.unproven:
            raise UsageError(
                f"{given.path} is calibrated, and --unproven runs no reference.",
                hint="Take that line out, or prove it.",
            )
        if self.calibrate is not None or said in (None, BUILT_IN):
            measured = any(map(self.goal, self.quants))
            return self.calibrate or said or self.calibration_text or (BUILT_IN if measured else None)
        kept = "evidence/calibration.* of its bundle" if said == AUTO else said
        raise UsageError(
            f"{given.path if given else ''} was calibrated with {said}, which is not in it.",
            hint=f"Give the text as well, --calibrate {kept}, or take the line out.",
        )

    def check_chat(self, chat: Chat | None) -> None:
        """Raise ``UsageError`` for what is said of a chat template, and the model's has no use for."""
        why = "has no chat template" if chat is None else "has a chat template that prints no day"
        if self.date is not None and (chat is None or chat.date is None):
            raise UsageError(f"--date was given, and the model {why}.", hint="Leave it out.")
        if self.thinks and chat is None:
            raise UsageError(f"--thinks was given, and the model {why}.", hint="Leave it out: a thought is a chat's.")

    def requests(self, model: Model, given: Table | None = None) -> list[Request]:
        """Return the variants to build, each once, those of a recipe that was ``given`` too.

        Raises ``UsageError`` for a name that no target knows, for a target that gets no quantisation, and as
        ``Target.check``.
        """
        found: dict[str, Request] = {}
        for target in self._targets():
            for quant in self._quants(target.name):
                request = self._request(target, quant, model)
                found.setdefault(request.id, request)
        for request in self._given(given, model):
            if request.id in found:
                raise UsageError(f"{request.id} is asked for twice.", hint="Give it another name in the recipe.")
            found[request.id] = request
        for request in found.values():
            request.target.check(replace(model, forms=request.forms), request.scheme)
        if not found:
            raise UsageError("There is nothing to build.", hint="Name a target and a quantisation.")
        asked = self.calibration_text is not None or self.quality == "searched"
        if asked and all(each.scales == "own" and each.scheme not in each.target.searched for each in found.values()):
            way = "calibration" if self.calibration_text is not None else "search"
            option = "--quality" if self.calibrate is None else "--calibrate"
            raise UsageError(
                f"Nothing of {', '.join(found)} has scales that a {way} would choose.",
                hint=f"Leave {option} out, or build fewer than {CALIBRATED_BITS} bits.",
            )
        return list(found.values())

    def _request(self, target: Target, quant: str, model: Model) -> Request:
        if goal := self.goal(quant):
            request = Request(target, quant, target.scheme("q4", model), "calibrated", called=goal.name)
            allocation.check(request, goal, model)
            return request
        scheme = target.scheme(quant, model)
        return Request(target, quant, scheme, self._scales(target, scheme))

    def _scales(self, target: Target, scheme: str) -> Scales:
        """Return what chooses a scheme's scales. Raises ``UsageError`` for a scheme whose scales are never plain."""
        if self.quality == "plain" and scheme in target.searched:
            plain = [name for name in target.schemes if name not in target.searched]
            like = [name for name in plain if target.schemes[name] == target.schemes[scheme]]
            raise UsageError(
                f"--quality plain was given, and the scales of {target.name}'s {scheme} are searched.",
                hint=f"Build --quant {target.name}:{like[0]}, or leave --quality out."
                if like
                else "Leave --quality out.",
            )
        if scheme in target.needs_calibration and self.calibration_text is None:
            raise UsageError(
                f"{target.name}:{scheme} makes nonsense of a model unless a text chooses its scales.",
                hint="Add --calibrate built-in, or a text of your own.",
            )
        if target.schemes[scheme] >= CALIBRATED_BITS:
            return "own"
        if self.calibration_text is not None:
            return "calibrated"
        return "searched" if self.quality == "searched" and scheme not in target.searched else "own"

    def _given(self, given: Table | None, model: Model) -> Iterator[Request]:
        """Yield the variants of a recipe that are for one of the targets. Raises ``UsageError`` where none is."""
        if given is None:
            return
        found = [
            (target, entry) for target in self._targets() for entry in given.entries if entry.target == target.name
        ]
        if not found:
            raise UsageError(
                f"{given.path} has no variant for {', '.join(self.targets)}.",
                hint=f"It has {', '.join(entry.id for entry in given.entries)}.",
            )
        scales: Scales = "own" if self.text(given) is None else "calibrated"
        for target, entry in found:
            if entry.called in target.schemes or entry.called.endswith(tuple(filter(None, SUFFIXES.values()))):
                raise UsageError(
                    f"{given.path}: [{entry.id}] is the name of a scheme.", hint="Give it another name in the recipe."
                )
            slots = target.slots(model.decoder, model.dtype)
            forms = given.forms(entry, slots)
            yield Request(target, "recipe", target.scheme("q4", model), scales, forms, entry.called)

    def _quants(self, target: str) -> list[str]:
        """Return the quantisations of a target. Raises ``UsageError`` where all are others'."""
        asked = [quant.lower().rpartition(":") for quant in self.quants]
        found = [quant for of, _, quant in asked if of in ("", target)]
        if self.quants and not found:
            raise UsageError(
                f"No quantisation is for {target}: {', '.join(self.quants)}.",
                hint=f"Give it one, --quant {target}:q4, or leave the target out.",
            )
        return found

    def _targets(self) -> list[Target]:
        """Return the targets. Raises ``UsageError`` where none has the KV cache built in that was asked for."""
        found = [targets.find(name.lower()) for name in self.targets]
        for of in targets_of(self.quants):
            if targets.find(of).name not in [target.name for target in found]:
                raise UsageError(
                    f"A quantisation is for {of}, which is not built.", hint=f"Add --target {of}, or leave it out."
                )
        if self.kv_cache == "f32":
            return found
        if not any(isinstance(target, FixesKvCache) for target in found):
            raise UsageError(
                f"None of the targets {', '.join(self.targets)} has its KV cache built in.",
                hint=f"Ask for kv_cache={self.kv_cache} when the bundle is loaded.",
            )
        return [target.with_kv_cache(self.kv_cache) if isinstance(target, FixesKvCache) else target for target in found]


def targets_of(quants: Sequence[str]) -> list[str]:
    """Return the targets that quantisations name, each once: "gguf" of "gguf:q5_k_m"."""
    return list(dict.fromkeys(of for quant in quants if (of := quant.lower().rpartition(":")[0])))


def _is_day(text: str) -> bool:
    try:
        return datetime.date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False
