"""The table of docs/scaling.md is what the client goes by. ``python tests/connect/test_scaling.py`` writes it anew."""

from __future__ import annotations

from pathlib import Path

from edgepack_connect.asking import KNOWN
from edgepack_connect.capabilities import Field
from edgepack_connect.servers import SERVERS

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
BEGIN, END = "<!-- made by tests/connect/test_scaling.py -->\n", "<!-- the end of what is made -->\n"


def cell(chat: Field | None, text: Field | None) -> str:
    """Where a server honours an option, under which condition."""
    if chat is None and text is None:
        return ""
    kinds = "yes" if chat and text else "chat" if chat else "text"
    one = chat or text
    assert one is not None
    values = "" if one.values is None or set(one.values) == {True} else " or ".join(f"`{each}`" for each in one.values)
    since = "" if one.since is None else f"from {'.'.join(map(str, one.since))}"
    return " ".join(filter(None, ("" if values and kinds == "yes" else kinds, values, since)))


def table() -> str:
    lines = [f"| | {' | '.join(server.name for server in SERVERS)} |", "|---" * (len(SERVERS) + 1) + "|"]
    for option in KNOWN["chat"]:
        cells = [cell(server.chat.get(option), server.text.get(option)) for server in SERVERS]
        lines.append(f"| `{option}` | {' | '.join(cells)} |")
    return "\n".join(["", *lines, "", ""])


def parts() -> tuple[str, str, str]:
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    made, after = rest.split(END)
    return before, made, after


def test_the_table_is_what_the_client_goes_by() -> None:
    assert parts()[1] == table()


if __name__ == "__main__":
    before, _, after = parts()
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{after}", encoding="utf-8")
