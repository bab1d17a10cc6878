"""The schemes that tests of all targets run with."""

from __future__ import annotations

from edgepack_packager import targets
from edgepack_packager.targets.mlx.forms import FORMS as MLX
from edgepack_packager.targets.onnx.forms import FORMS as ONNX

SOME = {
    *("int2", "int4", "int8", "int4_b128", "int4_b64_asym"),
    *("2bit", "3bit_g32", "4bit", "4bit_g32", "5bit_g128", "8bit"),
}
"""Of the forms that differ in bits and neighbours alone: all bits and all numbers of neighbours, not each with each."""

GRIDS = {"q1_0", "q2_0"}
"""Schemes that refuse weights which do not lie on their grid."""


def schemes() -> list[tuple[str, str]]:
    """Return the targets with their schemes for any weights, as they name them."""
    found = [(name, scheme) for name in targets.names() for scheme in targets.find(name).schemes if scheme not in GRIDS]
    return [(name, scheme) for name, scheme in found if scheme in SOME or scheme not in {*MLX, *ONNX}]
