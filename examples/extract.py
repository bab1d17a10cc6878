"""Data extraction: texts in, typed rows out. A schema binds the answer, so that each is a row or a sentence of error.

pip install 'edgepack[gguf,structured]'
python examples/extract.py demo.edgepack examples/people/*.txt > people.csv

The type below is all there is to change for another table: its JSON schema binds the model's answer, token by token,
and the answer is read back as that type. Nothing is repaired and nothing asked twice. Whether a value is *true* is the
model's business: the demo model has learned records of this kind, and nothing else of the sort.
"""

import argparse
import csv
import sys
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

import edgepack


class Person(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=40)]
    age: Annotated[int, Meta(ge=0, le=130)]
    city: Annotated[str, Meta(min_length=1, max_length=40)]


SCHEMA = msgspec.json.schema(Person)
ASK = "{} Give me that as JSON."


def extract(model: edgepack.Model, text: str) -> Person:
    """Return what a text says. Raises ``EdgepackError`` for one that does not fit the context, ``ValueError`` for an
    answer that ended before it was whole."""
    messages = [{"role": "user", "content": ASK.format(text.strip())}]
    result = model.chat(messages, json_schema=SCHEMA, temperature=0, max_tokens=120)
    if result.finish_reason != "stop":
        raise ValueError("The answer was cut: its last values are only what closes it. Raise max_tokens.")
    return msgspec.json.decode(result.text, type=Person)


def main() -> int:
    """Write a row for each file to standard output; return 1 where one gave none."""
    parser = argparse.ArgumentParser(description="Extract people from text files, as CSV.")
    parser.add_argument("bundle")
    parser.add_argument("texts", type=Path, nargs="+")
    given = parser.parse_args()
    table, failed = csv.writer(sys.stdout, lineterminator="\n"), 0
    try:
        with edgepack.load(given.bundle) as model:
            table.writerow(["file", *Person.__struct_fields__])
            for path in given.texts:
                try:
                    person = extract(model, path.read_text("utf-8"))
                    table.writerow([path.name, *msgspec.structs.astuple(person)])
                except (ValueError, OSError) as error:
                    print(f"{path}: {error}", file=sys.stderr)
                    failed = 1
    except edgepack.EdgepackError as error:
        sys.exit(str(error))
    return failed


if __name__ == "__main__":
    sys.exit(main())
