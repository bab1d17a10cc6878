"""The page that ``fidelity.py`` writes: results in, Markdown out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf
from pathlib import Path

import fidelity_picture
import msgspec
from fidelity_models import CONTEXT, SPECIMENS, TOKENS

CASES: Mapping[str, str] = {"below": "f32", "past": "f32", "q8": "q8", "q4": "q4"}
# Above what ggml's half-precision table of gelu costs (3e-7), below what a wrong rope or window does.
WRONG = 1e-6

INTRO = f"""\
# Fidelity

How far a payload is from its model, for edgepack's targets and for the converter that each format has anyway. This page
and its picture are written by one command, which runs everything that it shows:

<!-- not run: it needs other converters, and minutes -->
```sh
python benchmarks/fidelity.py --scratch /tmp/fidelity --peers mlx-lm genai llama.cpp --write docs/fidelity.md
```

Each family is a random bf16 checkpoint of 4 to 8 layers, with its published features and a short window or original
context. Each tool converts it, and {TOKENS} random tokens run through the result on a processor. The proof's
[reference](proof.md), which agrees with transformers in fp32, says what the logits should be.

- **Structure** is a payload of f32 weights: nothing is quantised, so what differs is a fault of the graph. NMSE is the
  squared error over the squared logits, for a prompt *below* the family's boundary (its window, or its original rope
  context), and for the rows *past* it in a longer one. More than 1e-6 is wrong, and **bold**. Less is rounding: 1e-7
  to 3e-7 is what ggml's table of gelu in half precision costs the Gemmas.
- **q8 and q4** are each tool's own 8 and 4 bits, over all {TOKENS} tokens: the mean KL from the reference in nats, and
  how often the likeliest token is the same. A random model is harder on 4 bits than a trained one: compare the tools
  within a family. They differ in what they leave unquantised.
- edgepack packs longrope for a context: here the default one for the prompt below the boundary, `--context {CONTEXT}`
  past it, and the prompt's own length where a target refuses the model otherwise. A peer has one payload for all. The
  proof's gates were not applied.
"""

OUTRO = """\
## How the tools were asked

Peers had their defaults. llama.cpp's converter comes from the source distribution of the engine that edgepack runs. It
writes no vocabulary here, because it refuses tokenizers that it does not know, and its files run through edgepack's
gguf runtime without the check that they are edgepack's: same engine, same parameters, f32 KV cache. mlx-lm's payloads
run in mlx-lm, with all that is not packed cast to f32; the builder's run in onnxruntime-genai.

"""

NOTHING = "-"

# Found in the source of the versions that this page names, and shown only beside a figure that is wrong.
_LONG_ALWAYS = "mlx-lm always rotates by the long factors."
_ONE_IN_BF16 = "{} adds one to the weights of the norms in bf16, which rounds them."
CAUSES: Mapping[tuple[str, str], str] = {
    ("phi3-4k", "llama.cpp"): "llama.cpp reads the window of a Phi-3 and does not use it.",
    ("phi3-4k", "mlx-lm"): "mlx-lm's Phi-3 has no window.",
    ("phi3", "mlx-lm"): _LONG_ALWAYS,
    ("phi4", "mlx-lm"): _LONG_ALWAYS,
    ("gemma", "genai"): _ONE_IN_BF16.format("The builder"),
    ("gemma2", "genai"): _ONE_IN_BF16.format("The builder"),
    ("gemma2", "mlx-lm"): "mlx-lm's Gemma 2 has no window.",
    ("qwen3.5", "mlx-lm"): _ONE_IN_BF16.format("mlx-lm"),
    ("mistral", "llama.cpp"): "llama.cpp runs a Mistral as a Llama, which has no window there.",
    ("mistral", "mlx-lm"): "mlx-lm runs a Mistral as a Llama, which has the windows of `layer_types` alone.",
    ("ministral3", "genai"): (
        "The builder does not round the ends of YaRN's ramp to whole pairs, and no query grows with its position."
    ),
}


class Result(msgspec.Struct, frozen=True):
    """What a tool's payload of a family computes in one of ``CASES``, which maps them to the payload's precision.

    ``scheme`` and ``engine`` as the tool calls them; ``reason`` why there is no figure. Of an f32 payload ``nmse``: of
    the prompt ``below`` the boundary, or of the rows ``past`` it. Of the others mean ``kl`` in nats and ``top1``.
    """

    family: str
    tool: str
    case: str
    scheme: str | None = None
    engine: str | None = None
    reason: str | None = None
    nmse: float | None = None
    kl: float | None = None
    top1: float | None = None


Cells = Mapping[tuple[str, str, str], Result]


def cases(family: str) -> list[str]:
    """Return the cases that a family has: nothing is past a boundary where there is none."""
    return [case for case in CASES if case != "past" or SPECIMENS[family].boundary is not None]


def write(path: Path, results: Sequence[Result], tools: Sequence[str]) -> None:
    """Write the page, and its picture beside it."""
    cells = {(result.family, result.tool, result.case): result for result in results}
    families = list(dict.fromkeys(result.family for result in results))
    picture, notes = path.with_suffix(".svg"), _Notes()
    rows = [(SPECIMENS[family].title, [_worst(cells, family, tool).nmse for tool in tools]) for family in families]
    picture.write_text(fidelity_picture.draw(rows, tools, WRONG), encoding="utf-8")
    parts = [INTRO, f"![The worst structural NMSE of every tool, by family]({picture.name})\n"]
    parts.append(_overview(cells, families, tools, notes))
    parts += [_family(cells, family, tools, notes) for family in families]
    parts += [OUTRO + _asked(results, tools), notes.text()]
    path.write_text("\n".join(parts), encoding="utf-8")


class _Notes:
    """Footnotes, each text once."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def mark(self, text: str) -> str:
        return f"[^{self._numbers.setdefault(text, len(self._numbers) + 1)}]"

    def text(self) -> str:
        return "".join(f"[^{number}]: {text}\n" for text, number in self._numbers.items())


def _worst(cells: Cells, family: str, tool: str) -> Result:
    """Return the result of the larger structural NMSE, or the one without."""
    found = (cells[family, tool, case] for case in cases(family) if CASES[case] == "f32")
    return max(found, key=lambda result: inf if result.nmse is None else result.nmse)


def _overview(cells: Cells, families: Sequence[str], tools: Sequence[str], notes: _Notes) -> str:
    lines = [_row("the worst structural NMSE", *tools), _row("---", *["---:"] * len(tools))]
    for family in families:
        worst = (_worst(cells, family, tool) for tool in tools)
        lines.append(_row(SPECIMENS[family].title, *(_nmse(result, notes) for result in worst)))
    return "".join(lines)


def _family(cells: Cells, family: str, tools: Sequence[str], notes: _Notes) -> str:
    specimen = SPECIMENS[family]
    boundary = "No boundary" if specimen.boundary is None else f"The boundary is at {specimen.boundary} tokens"
    lines = [
        f"## {specimen.title}\n\n{specimen.features[0].upper()}{specimen.features[1:]}. {boundary}.\n\n",
        _row("", "NMSE below", "NMSE past", "q8 KL", "q8 top-1", "q4 KL", "q4 top-1"),
        _row("---", *["---:"] * 6),
    ]
    for tool in tools:
        found = {case: cells[family, tool, case] for case in cases(family)}
        past = _nmse(found["past"], notes) if "past" in found else NOTHING
        loss = (*_loss(found["q8"], notes), *_loss(found["q4"], notes))
        lines.append(_row(tool, _nmse(found["below"], notes), past, *loss))
    return "".join(lines)


def _nmse(result: Result, notes: _Notes) -> str:
    if result.nmse is None:
        return _nothing(result, notes)
    text = f"{result.nmse:.2f}" if result.nmse >= 0.01 else _short(result.nmse)
    if result.nmse <= WRONG:
        return text
    cause = CAUSES.get((result.family, result.tool))
    return f"**{text}**{notes.mark(cause) if cause else ''}"


def _short(value: float) -> str:
    """Return one digit and the exponent: "1e-6"."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit}e{int(exponent)}"


def _loss(result: Result, notes: _Notes) -> tuple[str, str]:
    if result.kl is None or result.top1 is None:
        return _nothing(result, notes), NOTHING
    return f"{result.kl:.4f}", f"{100 * result.top1:.0f} %"


def _nothing(result: Result, notes: _Notes) -> str:
    """A cell without a figure: with the tool's reason, or because it was not asked."""
    if result.reason is None:
        return NOTHING + notes.mark("llama.cpp's own tool for 4 bits is in no wheel.")
    if result.reason.startswith("refused: "):
        return "refused" + notes.mark(result.reason.removeprefix("refused: "))
    return "fails" + notes.mark(f"`{result.reason}`")


def _asked(results: Sequence[Result], tools: Sequence[str]) -> str:
    precisions = list(dict.fromkeys(CASES.values()))
    lines = [_row("tool", "engine", *precisions), _row("---", "---", *["---"] * len(precisions))]
    for tool in tools:
        mine = [result for result in results if result.tool == tool]
        schemes = (
            _distinct(r.scheme and f"`{r.scheme}`" for r in mine if CASES[r.case] == precision)
            for precision in precisions
        )
        lines.append(_row(tool, _distinct(result.engine for result in mine), *schemes))
    return "".join(lines)


def _distinct(values: Iterator[str | None]) -> str:
    return ", ".join(sorted({value for value in values if value})) or NOTHING


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |\n"
