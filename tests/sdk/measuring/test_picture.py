"""Pictures of measurements: every bar at its length, on one axis a panel, whatever a bundle is called."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from edgepack.measuring.picture import Bar, Panel, draw

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*panels: Panel, title: str = "a bench") -> ElementTree.Element:
    return ElementTree.fromstring(draw(title, panels))


def lengths(picture: ElementTree.Element) -> list[float]:
    return [float(each.attrib["width"]) for each in picture.iter(f"{SVG}rect") if "%" not in each.attrib["width"]]


def texts(picture: ElementTree.Element) -> list[str]:
    return [each.text or "" for each in picture.iter(f"{SVG}text")]


def test_bars_of_a_panel_share_an_axis_and_panels_do_not() -> None:
    speed = Panel("tokens a second", (Bar("prefill", 200.0), Bar("decode", 50.0)))
    time = Panel("milliseconds", (Bar("between tokens", 20.0),))
    prefill, decode, between = lengths(drawn(speed, time))
    assert prefill == pytest.approx(4 * decode)
    assert between == prefill


def test_a_spread_is_drawn_around_the_end_of_its_bar_and_told() -> None:
    picture = drawn(Panel("tokens a second", (Bar("decode", 50.0, 5.0),)))
    (path,) = picture.iter(f"{SVG}path")
    low, high = (float(each) for each in path.attrib["d"].removeprefix("M").replace("H", " ").split()[::2])
    (length,) = lengths(picture)
    start = 190.0
    assert high - (start + length) == pytest.approx(start + length - low, abs=0.11)
    assert high - low == pytest.approx(length / 5, abs=0.11)
    assert "50.0 ± 5.0" in texts(picture)


def test_everything_lies_inside() -> None:
    picture = drawn(Panel("t", (Bar("a", 3.0, 3.0), Bar("b", 1e9), Bar("c", 0.0))), Panel("u", (Bar("d", 1e-9),)))
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    for each in picture.iter(f"{SVG}rect"):
        if "x" in each.attrib:
            assert float(each.attrib["x"]) + float(each.attrib["width"]) <= width
            assert float(each.attrib["y"]) + 16 <= height


def test_a_figure_that_is_none_is_named_and_no_bundle_writes_markup() -> None:
    picture = drawn(Panel("<t>", (Bar('"&<script>', float("nan")), Bar("b", 1.0))), title="</svg><script>")
    assert {"nan", '"&<script>', "<t>", "</svg><script>"} <= set(texts(picture))
    assert lengths(picture)[0] == 0.0
    assert not list(picture.iter(f"{SVG}script"))
