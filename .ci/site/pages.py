"""The pages of the site that nobody writes: the SDK's names, the errors and the commands, from the code itself.

MkDocs calls the hooks at the end of the module; the functions before them return Markdown and know nothing of MkDocs.
"""

from __future__ import annotations

import inspect
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from reports import REPORTS, schema_of

import edgepack
from edgepack import errors
from edgepack.cli import faults
from edgepack.cli.app import app_for

NEXT_STEP = "Next step: "
"""What begins the paragraph of an error's docstring that says what to do."""

_LINK = re.compile(r"\[([^][]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")

_FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
    r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>|@import[^;]*//[^;]*;|url\(["']?(?:https?:)?//[^)]*\)"""
)


def names() -> str:
    """Return the page of every public name, each rendered from where it is defined."""
    homes = {name: f"edgepack.{home}.{name}" for name, home in edgepack._HOME.items() if home != "errors"}
    lines = [
        "# The SDK's names",
        "",
        "All of `edgepack.__all__`, imported from `edgepack` itself. [Embedding edgepack](../sdk.md) shows how they",
        "are used, and [the errors](errors.md) have a page of their own.",
        "",
    ]
    for name in sorted(homes, key=lambda name: (name[0].isupper(), name)):
        lines += [f"::: {homes[name]}", ""]
    return "\n".join(lines)


def error_classes() -> list[type[errors.EdgepackError]]:
    """Return every class of error, each after its base."""

    def below(kind: type[errors.EdgepackError]) -> Iterator[type[errors.EdgepackError]]:
        yield kind
        for each in kind.__subclasses__():
            if each.__module__ == errors.__name__:
                yield from below(each)

    return list(below(errors.EdgepackError))


def errors_page() -> str:
    """Return the page of the errors: the tree, and of each what it means and what to do."""
    tree = (inspect.getdoc(errors) or "").split("::\n\n", 1)[1]
    lines = [
        "# Errors",
        "",
        "Each is an `edgepack.EdgepackError` with one sentence, `message`, and what to do about this very case,",
        "`hint`, which is None where nothing can be advised. Both are safe to print and to log.",
        "",
        "```text",
        tree,
        "```",
        "",
    ]
    for kind in error_classes():
        bases = " and ".join(f"`{base.__name__}`" for base in kind.__bases__)
        lines += [f"## {kind.__name__}", "", f"Is {_article(bases)} {bases}.", "", inspect.getdoc(kind) or "", ""]
    return "\n".join(lines)


def commands() -> str:
    """Return the page of the command line: each command with its options, and the schema of its report."""
    lines = [
        "# Commands",
        "",
        "[The command line](../cli.md) says what they share. With `--json`, what went wrong stands in the report under",
        "`error`, beside what its schema here has.",
        "",
        "## Exit codes",
        "",
        (inspect.getdoc(faults) or "").partition("\n\n")[2],
        "",
    ]
    program = typer.main.get_command(app_for([]))
    for path, command in _commands(program, ["edgepack"]):
        lines += _command(path, command)
    return "\n".join(lines)


def _commands(command: Any, path: list[str]) -> Iterator[tuple[list[str], Any]]:
    for name, each in sorted(command.commands.items()):
        if hasattr(each, "commands"):
            yield from _commands(each, [*path, name])
        elif not each.hidden:
            yield [*path, name], each


def _command(path: list[str], command: Any) -> Iterator[str]:
    context = command.make_context(" ".join(path), [], resilient_parsing=True)
    yield from (f"## {' '.join(path)}", "", inspect.cleandoc(command.help or ""), "")
    yield from ("```text", command.get_usage(context).removeprefix("Usage: "), "```", "")
    rows = [record for each in command.params if (record := each.get_help_record(context)) is not None]
    if rows:
        yield from ("| | |", "|---|---|")
        for name, meaning in rows:
            yield f"| `{_cell(name)}` | {_cell(meaning)} |"
        yield ""
    if command.epilog:
        yield from ("```sh", *command.epilog.splitlines(), "```", "")
    if (report := " ".join(path[1:])) in REPORTS:
        yield from (f"`--json` prints what [this JSON Schema]({_schema(report)}) describes.", "")


def _schema(report: str) -> str:
    return f"schemas/{report.replace(' ', '-')}.json"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _article(words: str) -> str:
    return "an" if words.strip("`")[0] in "AEIO" else "a"


PAGES = {"reference/names.md": names, "reference/errors.md": errors_page, "reference/commands.md": commands}
"""What is generated, by its place in the site."""


def within(markdown: str, page: str) -> str:
    """Return a page without its links to files of the repository that are not in ``docs``: their paths stand there.

    The site may be read without the repository, and the pages in the repository without the site.
    """

    def shown(found: re.Match[str]) -> str:
        label, target, _ = found.groups()
        place = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if "://" in target or place.startswith("docs/"):
            return found[0]
        return f"{label} (`{place}`)"

    return _LINK.sub(shown, markdown)


def fetched(html: str) -> list[str]:
    """Return the tags of a page with which a browser would fetch something from elsewhere."""
    return [found[0] for found in _FETCHED.finditer(html)]


def on_files(files: Any, *, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for place, make in PAGES.items():
        files.append(File.generated(config, place, content=make()))
    for report in REPORTS:
        schema = json.dumps(schema_of(report), indent=2)
        files.append(File.generated(config, f"reference/{_schema(report)}", content=schema))
    return files


def on_config(config: Any) -> Any:
    """List the decisions in the navigation, which are a file each."""
    decisions = sorted(place.name for place in Path(config.docs_dir, "adr").glob("*.md"))
    config.nav.append({"Decisions": [f"adr/{name}" for name in decisions]})
    return config


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Take the links out that lead out of the site."""
    return within(markdown, page.file.src_uri)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Hold every page to what the site promises. Raises ``PluginError`` for one that fetches from elsewhere."""
    from mkdocs.exceptions import PluginError

    if tags := fetched(output):
        raise PluginError(f"{page.file.src_uri} fetches from elsewhere: {tags[0]}")
    return output
