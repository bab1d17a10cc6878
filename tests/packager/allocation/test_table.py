"""``recipe.toml``: what is written is read, what people write is understood, and what is wrong is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from decoders import describe

from edgepack.errors import SourceError, UsageError
from edgepack_packager import targets
from edgepack_packager.allocation import table
from edgepack_packager.allocation.table import Line, Section
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Forms, Model, Slot

DECODER = describe(hidden_size=256, intermediate_size=512, n_vocab=512, head_dim=64)
MODEL = Model("tiny", DECODER, "bf16")
SLOTS = targets.find("gguf").slots(DECODER, "bf16")


def given(tmp_path: Path, text: str) -> Path:
    (tmp_path / "recipe.toml").write_text(text, "utf-8")
    return tmp_path / "recipe.toml"


def forms(tmp_path: Path, lines: str, slots: list[Slot] | None = None) -> Forms:
    found = table.read(given(tmp_path, f'["gguf-mine".forms]\n{lines}\n'))
    return found.forms(found.entries[0], slots or SLOTS)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    lines = [Line(slot.tensors[0], next(iter(slot.forms)), "a remark") for slot in SLOTS]
    text = table.write([Section("gguf-4.5bits", "4.5bits", ["so many bits"], lines)], ('a "text"\n', "0" * 64))
    found = table.read(given(tmp_path, text))
    assert (found.calibrate, found.entries[0].id) == ('a "text"\n', "gguf-4.5bits")
    assert found.forms(found.entries[0], SLOTS) == {line.name: line.form for line in lines}


def test_a_star_is_a_part_of_a_name_and_the_last_line_counts(tmp_path: Path) -> None:
    found = forms(tmp_path, '"*" = "q4_K"\n"layers.*.mlp.*" = "q5_K"\n"layers.1.mlp.down" = "q8_0"')
    assert found["embedding"] == found["layers.0.attention.v"] == "q4_K"
    assert found["layers.0.mlp.down"] == found["layers.1.mlp.up"] == "q5_K"
    assert found["layers.1.mlp.down"] == "q8_0"
    assert set(forms(tmp_path, '"layers.*.mlp.down" = "q6_K"')) == {"layers.0.mlp.down", "layers.1.mlp.down"}


def test_one_name_speaks_for_a_tensor_that_holds_several(tmp_path: Path) -> None:
    fused = [Slot(("q", "k", "v"), {"q4_K": 1, "q6_K": 2})]
    assert forms(tmp_path, 'v = "q6_K"', fused) == dict.fromkeys("qkv", "q6_K")
    with pytest.raises(UsageError, match=r"line 3: .* stores as one tensor have several forms: q q4_K, v q6_K"):
        forms(tmp_path, 'q = "q4_K"\nv = "q6_K"', fused)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('"layers.7.mlp.down" = "q4_K"', "line 2: .*no matrix 'layers.7.mlp.down'"),
        ('"layers.*.mlp.dawn" = "q4_K"', "line 2: .*no matrix"),
        ('"*" = "q4_K"\n"embedding" = "q9_K"', "line 3: .*gguf has no form 'q9_K'"),
        ('"norm" = "q4_K"', "line 2: .*no matrix 'norm'"),
        ('"embedding" = 4', "line 2: .*embedding has no form"),
        ('"embedding" = ["q4_K"]', "line 2: .*has no form"),
        ('a.b = "q4_K"', "line 2: .*has no form"),
        ("", "has no forms"),
    ],
)
def test_a_line_that_says_nothing_sound_is_named(lines: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        forms(tmp_path, lines)


def test_a_form_that_does_not_suit_a_matrix_is_named(tmp_path: Path) -> None:
    slots = targets.find("gguf").slots(describe(), "bf16")
    wide = [*slots, *SLOTS[-1:]]
    with pytest.raises(UsageError, match=r"line 2: .*q4_K does not suit embedding"):
        forms(tmp_path, 'embedding = "q4_K"', wide)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 0 variants"),
        ("x = 1", "x is no variant"),
        ("[gguf]\n", "gguf is no variant"),
        ('["gguf-a"]\nbits = 4\n', "line 2: .*has a field bits"),
        ("calibrate = 1", "calibrate is no text"),
        ("[gguf-a.forms]\n" + "\n".join(f'"layers.{i}.*" = "q4_K"' for i in range(300)), "256 lines with stars"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        table.read(given(tmp_path, text))


@pytest.mark.parametrize(
    "text",
    [
        "[gguf-a.forms]\nembedding = q4_K",
        '[gguf-a.forms]\nembedding = "q4_K"\nembedding = "q5_K"',
        "a = " + "[" * 60_000,
        "a." * 60_000 + "b = 1",
        "#" * (1 << 21),
        "\udcff",
    ],
)
def test_a_file_that_is_no_toml_ends_in_a_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises((SourceError, UsageError), match=r"recipe\.toml"):
        table.read(tmp_path / "recipe.toml")


def test_a_folder_or_nothing_is_no_recipe(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "absent.toml"):
        with pytest.raises(SourceError):
            table.read(path)


def test_its_variants_are_requests_and_have_names_of_their_own(tmp_path: Path) -> None:
    found = table.read(
        given(tmp_path, '[gguf-mine.forms]\nembedding = "q8_0"\n[onnx-mine.forms]\nembedding = "int8"\n')
    )
    (request,) = Recipe(("gguf",), ()).requests(MODEL, found)
    assert (request.id, request.forms, request.calibrated) == ("gguf-mine", {"embedding": "q8_0"}, False)
    with pytest.raises(UsageError, match="has no variant for mlx"):
        Recipe(("mlx",), ()).requests(MODEL, found)
    for name, message in (("q4_0", "is the name of a scheme"), ("6bits", "is asked for twice")):
        found = table.read(given(tmp_path, f'["gguf-{name}".forms]\nembedding = "q8_0"\n'))
        with pytest.raises(UsageError, match=message):
            Recipe(("gguf",), ("6bits",)).requests(MODEL, found)


def test_a_text_that_is_not_in_it_is_asked_for(tmp_path: Path) -> None:
    lines = '[gguf-a.forms]\nembedding = "q8_0"\n'
    plain, built_in, own = (
        table.read(given(tmp_path, f"{said}{lines}"))
        for said in ("", 'calibrate = "built-in"\n', 'calibrate = "notes.txt"\n')
    )
    recipe = Recipe(("gguf",), ())
    assert (recipe.text(plain), recipe.text(built_in)) == (None, "built-in")
    assert Recipe(("gguf",), (), calibrate="my/notes.txt").text(own) == "my/notes.txt"
    with pytest.raises(UsageError, match="which is not in it"):
        recipe.text(own)
    with pytest.raises(UsageError, match="--unproven runs no reference"):
        Recipe(("gguf",), (), unproven=True).text(built_in)
