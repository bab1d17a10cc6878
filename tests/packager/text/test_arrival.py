"""What each role says must arrive in a prompt: small templates, each with what is found of it."""

from __future__ import annotations

import pytest

from edgepack_packager.text.arrival import PROBES, Arrival
from edgepack_packager.text.battery import DAY
from edgepack_packager.text.files import TEMPLATE, TOOL_USE
from edgepack_packager.text.render import Job, arrive

ALL = "assistant system tool user"
THREE = "assistant system user"
TWO = "assistant user"


def arrival(source: str, file: str = TEMPLATE) -> Arrival:
    return arrive(Job(source, "<s>", "</s>", DAY, file, cpu_seconds=10, memory_mib=512))


def loop(body: str, over: str = "messages") -> str:
    return "{% for m in " + over + " %}[{{ m.role }}]" + body + "{% endfor %}"


def parts(text: str = "{{ p.text }}", content: str = "m.content") -> str:
    return "{% for p in " + content + " %}{% if p.type == 'text' %}" + text + "{% endif %}{% endfor %}"


PLAIN = loop("{{ m.content }}")
EITHER = loop("{% if m.content is string %}{{ m.content }}{% else %}" + parts() + "{% endif %}")
PARTS_OF_USER = loop("{% if m.role == 'user' %}" + parts() + "{% else %}{{ m.content + '.' }}{% endif %}")
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('No system.') }}{% endif %}"
ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Turns.') }}"
    "{% endif %}{{ m.content }}{% endfor %}"
)
FIRST_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}"
    "{% for m in messages %}{% if m.role in ['user', 'assistant'] %}{{ m.content }}{% endif %}{% endfor %}"
)
MOVED_SYSTEM = (
    "{% set s = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for m in messages %}{% if m.role != 'system' %}"
    "{% if m.role == 'user' and loop.last %}{{ s }}\n{% endif %}{{ m.content }}{% endif %}{% endfor %}"
)
THOUGHTS = loop("{{ m.content.split('</think>')[-1].lstrip('\\n') }}")
TOOLS = "{{ tools | tojson if tools else '' }}"
CALLS = loop("{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% else %}{{ m.content }}{% endif %}")

# source, the roles that are printed, those of them in parts, those that are printed first only, those that get lost
DEVELOPER = loop("{% if m.role == 'developer' %}!{{ m.content }}{% else %}{{ m.content }}{% endif %}")
FOUND: list[tuple[str, str, str, str, str, str]] = [
    ("as it is", PLAIN, THREE, "", "", ""),
    ("trimmed", loop("{{ m.content | trim }}"), THREE, "", "", ""),
    ("in capitals", loop("{{ m.content | upper }}"), "", "", "", THREE),
    ("with one capital", loop("{{ m.content | capitalize }}"), "", "", "", THREE),
    ("cut short", loop("{{ m.content | truncate(200) }}"), "", "", "", THREE),
    ("the first characters", loop("{{ m.content[:1000] }}"), "", "", "", THREE),
    ("the first line", loop("{{ m.content.split('\\n')[0] }}"), "", "", "", THREE),
    ("the last line", loop("{{ m.content.split('\\n')[-1] }}"), "", "", "", THREE),
    ("all but the last letter", loop("{{ m.content[:-1] }}"), "", "", "", THREE),
    ("all but the first letter", loop("{{ m.content[1:] }}"), "", "", "", THREE),
    ("letters apart", loop("{% for c in m.content %}{{ c }} {% endfor %}"), "", "", "", THREE),
    ("letters together", loop("{% for c in m.content %}{{ c }}{% endfor %}"), THREE, "", "", ""),
    ("as JSON", loop("{{ m | tojson }}"), THREE, "", "", ""),
    ("indented", loop("{{ m.content | indent(4) }}"), THREE, "", "", ""),
    ("parts alone", loop(parts()), THREE, THREE, "", ""),
    ("parts, trimmed", loop(parts("{{ p.text | trim }}")), THREE, THREE, "", ""),
    ("the first part alone", loop("{{ m.content[0]['text'] }}"), THREE, THREE, "", ""),
    ("the text of the first part, joined", loop("{{ m.content[0].text + '.' }}"), THREE, THREE, "", ""),
    ("either", EITHER, THREE, "", "", ""),
    ("parts of the user", PARTS_OF_USER, THREE, "user", "", ""),
    ("parts of another name", loop("{% for p in m.content %}{{ p.words }}{% endfor %}"), "", "", "", THREE),
    ("the roles alone", loop(""), "", "", "", THREE),
    ("nothing", "Hello.", "", "", "", THREE),
    ("the first message alone", "{{ messages[0].content }}", "system", "", "system", TWO),
    ("the last message alone", "{{ messages[-1].content }}", "", "", "", THREE),
    ("the first two", loop("{{ m.content }}", "messages[:2]"), "system", "", "system", TWO),
    ("the first message, each time", loop("{{ messages[0].content }}"), "system", "", "system", TWO),
    ("the user alone", loop("{% if m.role == 'user' %}{{ m.content }}{% endif %}"), "user", "", "", "assistant system"),
    ("no system", loop("{% if m.role != 'system' %}{{ m.content }}{% endif %}"), TWO, "", "", "system"),
    ("system refused", NO_SYSTEM + loop("{{ m.content }}"), TWO, "", "", ""),
    ("turns in their order", ALTERNATE, TWO, "", "", ""),
    ("system first", FIRST_SYSTEM, THREE, "", "system", ""),
    ("system before the last question", MOVED_SYSTEM, THREE, "", "system", ""),
    ("every second message", loop("{{ m.content }}", "messages[::2]"), "system", "", "system", TWO),
    ("the last four", loop("{{ m.content }}", "messages[-4:]"), "", "", "", THREE),
    ("one of a row", loop("{% if loop.first or loop.previtem.role != m.role %}{{ m.content }}{% endif %}"), "system",
     "", "system", TWO),
    ("added up in vain", "{% set a = '' %}" + loop("{% set a = a ~ m.content %}") + "{{ a }}", "", "", "", THREE),
    ("added up", "{% set n = namespace(a='') %}" + loop("{% set n.a = n.a ~ m.content %}") + "{{ n.a }}", THREE, "", "",
     ""),
    ("no answers", loop("{% if m.role != 'assistant' %}{{ m.content }}{% endif %}"), "system user", "", "",
     "assistant"),
    ("where a variable says so", loop("{% if wordy %}{{ m.content }}{% endif %}"), "", "", "", THREE),
    ("unless a variable says so", loop("{% if not silent %}{{ m.content }}{% endif %}"), THREE, "", "", ""),
    ("without thoughts", THOUGHTS, THREE, "", "", ""),
    ("refused", "{{ raise_exception('Never.') }}", "", "", "", ""),
    ("tools and calls", TOOLS + CALLS, ALL, "", "", ""),
    ("tools in parts", TOOLS + loop("{% if not m.tool_calls %}" + parts() + "{% endif %}"), ALL, ALL, "", ""),
    ("tools' answers lost", TOOLS + loop("{% if m.role != 'tool' %}{{ m.content }}{% endif %}"), THREE, "", "", "tool"),
    ("one answer of two", TOOLS + loop("{% if m.role != 'tool' or loop.nextitem is not defined or loop.nextitem.role !="
     " 'tool' %}{{ m.content }}{% endif %}"), THREE, "", "", "tool"),
    ("a developer, any role", loop("{{ m.content }}"), THREE, "", "", ""),
    ("a developer, named", DEVELOPER, "assistant developer system user", "", "", ""),
    ("a developer, lost", DEVELOPER.replace("!{{ m.content }}", ""), THREE, "", "", "developer"),
    ("system lost beside tools", loop("{% if not tools or m.role != 'system' %}{{ m.content }}{% endif %}"),
     "assistant tool user", "", "", "system"),
    ("user lost beside tools", loop("{% if not tools or m.role != 'user' %}{{ m.content }}{% endif %}"),
     "assistant system tool", "", "", "user"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("source", "roles", "in_parts", "leading", "lost"), [row[1:] for row in FOUND], ids=[row[0] for row in FOUND]
)
def test_what_arrives(source: str, roles: str, in_parts: str, leading: str, lost: str) -> None:
    found = arrival(source)
    assert (" ".join(found.roles), " ".join(found.parts), " ".join(found.leading), " ".join(sorted(found.lost))) == (
        roles,
        in_parts,
        leading,
        lost,
    )


def test_the_conversation_in_which_words_are_lost_is_named() -> None:
    assert arrival(loop("{% if loop.index < 4 %}{{ m.content }}{% endif %}")).lost["user"] == "several turns"


def test_a_template_for_tools_is_asked_with_a_tool_alone() -> None:
    source = "{% if tools %}{{ tools }}" + PLAIN + "{% endif %}"
    assert arrival(source).lost["user"] == "one message"
    assert arrival(source, TOOL_USE) == Arrival(ALL.split(), [], [], {})
    assert arrival(PLAIN, TOOL_USE).roles == THREE.split()


def test_tools_by_another_name_are_given_too() -> None:
    source = "{% if xml_tools %}{{ xml_tools }}{% endif %}" + loop("{{ m.content if xml_tools else '' }}")
    assert arrival(source).lost["user"] == "one message"
    assert arrival(source.replace("if xml_tools else ''", "if not xml_tools else ''")).lost["user"] == "one message"


def test_every_role_speaks_in_the_probes() -> None:
    assert {role for probe in PROBES for role in probe.roles} == {*ALL.split(), "developer"}
