"""What licences ask of whoever passes a model on, as far as a bundle can carry it or show it. Data, not legal advice.

Each entry names the clauses that it comes from. The licence's text binds; this table only makes its duties visible.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from types import MappingProxyType

UNKNOWN = "LicenseRef-unknown"
NON_COMMERCIAL = "Non-commercial use only."


@dataclass(frozen=True, slots=True)
class Terms:
    """The duties of one licence; None and False where it has no such duty.

    ``asks``: it is an agreement, which a build must be told to accept. ``display``: words to show to users. ``prefix``:
    what the name of a model made with it begins with. ``notice``: a sentence that a "Notice" file carries. ``changes``:
    modified files say that they are. ``limit``: what it may not be used for, in a sentence. ``policy``: the address of
    its use policy.
    """

    name: str
    url: str | None = None
    asks: bool = False
    display: str | None = None
    prefix: str | None = None
    notice: str | None = None
    changes: bool = False
    limit: str | None = None
    policy: str | None = None

    @property
    def permissive(self) -> bool:
        """Whether anybody may use and change what is under it, for anything, without an agreement."""
        return self.url is not None and not self.asks and self.limit is None


def _llama(version: str, site: str, display: str, prefix: str) -> Terms:
    """Llama 3 and later, clause 1.b: (i) the text, the display and the name, (iii) the notice, (iv) the policy."""
    title = f"Meta Llama {version}" if version == "3" else f"Llama {version}"
    return Terms(
        name=f"{title} Community License Agreement",
        url=f"https://www.llama.com/{site}/license",
        asks=True,
        display=display,
        prefix=prefix,
        notice=(
            f"{title} is licensed under the {title} Community License, "
            "Copyright © Meta Platforms, Inc. All Rights Reserved."
        ),
        policy=f"https://www.llama.com/{site}/use-policy",
    )


TERMS: Mapping[str, Terms] = MappingProxyType(
    {
        "MIT": Terms("MIT License", "https://spdx.org/licenses/MIT.html"),
        # Clause 4.b.
        "Apache-2.0": Terms("Apache License 2.0", "https://www.apache.org/licenses/LICENSE-2.0", changes=True),
        # Clause 3.a.1.B.
        "CC-BY-4.0": Terms("CC BY 4.0", "https://creativecommons.org/licenses/by/4.0/legalcode", changes=True),
        # Clauses 3.a.1.B and 2.a.1.
        "CC-BY-NC-4.0": Terms(
            "CC BY-NC 4.0",
            "https://creativecommons.org/licenses/by-nc/4.0/legalcode",
            changes=True,
            limit=NON_COMMERCIAL,
        ),
        # Clause 1.b: (i) the text, (iii) the notice, (iv) the policy, (v) no improving of other models.
        "LicenseRef-llama2": Terms(
            "Llama 2 Community License Agreement",
            "https://ai.meta.com/llama/license",
            asks=True,
            notice=(
                "Llama 2 is licensed under the LLAMA 2 Community License, "
                "Copyright (c) Meta Platforms, Inc. All Rights Reserved."
            ),
            limit="Not for improving another large language model.",
            policy="https://ai.meta.com/llama/use-policy",
        ),
        "LicenseRef-llama3": _llama("3", "llama3", "Built with Meta Llama 3", "Llama 3"),
        "LicenseRef-llama3.1": _llama("3.1", "llama3_1", "Built with Llama", "Llama"),
        "LicenseRef-llama3.2": _llama("3.2", "llama3_2", "Built with Llama", "Llama"),
        "LicenseRef-llama3.3": _llama("3.3", "llama3_3", "Built with Llama", "Llama"),
        # Clause 3.1: the text, modified files, the notice; clause 3.2: the policy.
        "LicenseRef-gemma": Terms(
            "Gemma Terms of Use",
            "https://ai.google.dev/gemma/terms",
            asks=True,
            notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
            changes=True,
            policy="https://ai.google.dev/gemma/prohibited_use_policy",
        ),
        # Apache's terms, and a limit of their use.
        "LicenseRef-lfm1.0": Terms(
            "LFM Open License v1.0",
            "https://www.liquid.ai/lfm-license",
            asks=True,
            changes=True,
            limit="Not for commercial use by who has a yearly revenue of 10 million US dollars or more.",
        ),
        # Version 1.2 is for research and teaching alone.
        "LicenseRef-exaone": Terms("EXAONE AI Model License Agreement", asks=True, limit=NON_COMMERCIAL),
        # Clause 3: (a) the text, (b) modified files, (d) the notice; clauses 5.b and 5.c.
        "LicenseRef-tencent-hunyuan-community": Terms(
            "Tencent Hunyuan Community License Agreement",
            "https://github.com/Tencent-Hunyuan/Hunyuan-7B/blob/main/LICENSE",
            asks=True,
            notice=(
                "Tencent Hunyuan is licensed under the Tencent Hunyuan Community License Agreement, "
                "Copyright © 2025 Tencent. All Rights Reserved. "
                "The trademark rights of “Tencent Hunyuan” are owned by Tencent or its affiliate."
            ),
            changes=True,
            limit=(
                "Not in the European Union, the United Kingdom and South Korea, and not for improving another AI model."
            ),
        ),
        # Clauses 2.a, 3.b and 3.c; 4.b asks for the display from models that were made with it.
        "LicenseRef-qwen-research": Terms(
            "Qwen Research License Agreement",
            asks=True,
            display="Built with Qwen",
            notice=(
                "Qwen is licensed under the Qwen RESEARCH LICENSE AGREEMENT, "
                "Copyright (c) Alibaba Cloud. All Rights Reserved."
            ),
            changes=True,
            limit=NON_COMMERCIAL,
        ),
    }
)


def terms_of(licence: str) -> Terms:
    """Return the terms of an SPDX identifier or a LicenseRef.

    A licence of its own that is not in the table counts as an agreement: nobody here can tell what it asks for.
    """
    if licence in TERMS:
        return TERMS[licence]
    if licence == UNKNOWN:
        return Terms("no licence stated")
    if licence.startswith("LicenseRef-"):
        return Terms(licence.removeprefix("LicenseRef-"), asks=True)
    return Terms(licence, f"https://spdx.org/licenses/{licence}.html")


def standard_text(licence: str) -> bytes | None:
    """Return the text of a licence that is the same for every work under it; None where it is not at hand."""
    place = files("edgepack_packager.licence") / "texts" / f"{licence}.txt"
    return place.read_bytes() if place.is_file() else None
