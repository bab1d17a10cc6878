"""Which matrices are one tensor in a file, and what they take together in each form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from edgepack.bundle.decoder import Decoder
from edgepack_packager.targets import Slot


def of(
    decoder: Decoder, tensor: Callable[[str], str], sizes: Callable[[int, int], Mapping[str, int]]
) -> tuple[Slot, ...]:
    """Return the slots of a decoder's matrices, in model order.

    ``tensor`` names the tensor in the file that holds a canonical one, ``sizes`` the bytes of rows and columns in each
    form that they can take.
    """
    names: dict[str, list[str]] = {}
    forms: dict[str, dict[str, int]] = {}
    for name, shape in decoder.tensors():
        if len(shape) != 2:
            continue
        place, own = tensor(name), sizes(*shape)
        names.setdefault(place, []).append(name)
        before = forms.setdefault(place, dict.fromkeys(own, 0))
        forms[place] = {form: before[form] + own[form] for form in own if form in before}
    return tuple(Slot(tuple(names[place]), _fewest_first(forms[place])) for place in names)


def _fewest_first(forms: Mapping[str, int]) -> Mapping[str, int]:
    return MappingProxyType(dict(sorted(forms.items(), key=lambda one: (one[1], one[0]))))
