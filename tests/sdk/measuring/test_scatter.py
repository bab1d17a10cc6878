"""Loss against size: every point at its place, and every label readable."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from edgepack.measuring.scatter import Point, draw

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*points: Point) -> ElementTree.Element:
    return ElementTree.fromstring(draw("a <model>", "size, MB", "KL", points))


def places(picture: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(each.attrib["cx"]), float(each.attrib["cy"])) for each in picture.iter(f"{SVG}circle")]


def labels(picture: ElementTree.Element) -> dict[str, tuple[float, float]]:
    return {e.text or "": (float(e.attrib["x"]), float(e.attrib["y"])) for e in picture.iter(f"{SVG}text")}


def test_larger_is_to_the_right_and_ten_times_the_loss_is_always_as_far_up() -> None:
    (x3, y3), (x2, y2), (x1, y1) = places(
        drawn(Point("a", "gguf", 50, 0.001), Point("b", "gguf", 100, 0.01), Point("c", "onnx", 150, 0.1))
    )
    assert x1 < x2 < x3
    assert x3 - x2 == pytest.approx(x2 - x1, abs=0.2)
    assert y3 < y2 < y1
    assert y2 - y3 == pytest.approx(y1 - y2, abs=0.2)


@pytest.mark.parametrize("losses", [[0.05] * 40, [0.0] * 3, [1e-9, 0.3, 0.3, 0.3001]])
def test_no_label_lies_on_another_nor_outside(losses: list[float]) -> None:
    picture = drawn(*(Point(f"point {number}", "gguf", 100, loss) for number, loss in enumerate(losses)))
    found = sorted(at for name, (_, at) in labels(picture).items() if name.startswith("point"))
    assert len(found) == len(losses)
    assert all(below - above >= 17.9 for above, below in pairwise(found))
    assert found[0] > 0
    assert found[-1] < float(picture.attrib["height"])


def test_a_loss_without_a_logarithm_is_on_the_lowest_line() -> None:
    (_, high), (_, low) = places(drawn(Point("some", "a", 1, 0.1, 0.5), Point("none", "a", 1, -1e-9)))
    assert high < low


def test_what_is_there_for_comparison_is_hollow_and_groups_have_colours() -> None:
    picture = drawn(Point("a", "gguf", 1, 0.1), Point("b", "gguf", 1, 0.2, hollow=True), Point("c", "onnx", 1, 0.05))
    plain, filled, other = picture.iter(f"{SVG}circle")
    assert plain.attrib["fill"] == "white"
    assert plain.attrib["stroke"] == filled.attrib["stroke"] != other.attrib["stroke"]


def test_the_same_figures_are_the_same_bytes() -> None:
    points = [Point("a & b", "gguf", 1.5, 0.1, 0.02), Point("c", "onnx", 2, 0.05)]
    assert draw("t", "x", "y", points) == draw("t", "x", "y", list(points))
