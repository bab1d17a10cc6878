"""What an install brings: packages and megabytes of a fresh virtual environment for each choice of extras.

    python benchmarks/install.py [--source FOLDER] [--bundle BUNDLE] [EXTRAS ...]

``EXTRAS`` are as pip takes them: "", "gguf", "gguf,cli". ``--source`` is a checkout, this one by default: an older one
gives the figures of before. With ``--bundle``, which the engine of those extras runs, it is loaded there, and answers
in a chat and bound to a schema: the packages of which nothing was imported are told. Megabytes are 10^6 bytes as pip
installs them; bytecode, which Python writes for itself, stands beside them. Packages are counted with edgepack, and
without pip, which an environment need not have.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXTRAS = ("gguf", "onnx", "mlx", "gguf,structured", "gguf,structured,cli", "build", "all")

SIZES = """
import json, os
from importlib.metadata import distributions
found = {}
for each in distributions():
    files = [each.locate_file(file) for file in each.files or () if os.path.isfile(each.locate_file(file))]
    code = [os.path.getsize(file) for file in files if file.suffix == ".pyc"]
    found[each.name] = [sum(map(os.path.getsize, files)) - sum(code), sum(code)]
print(json.dumps(found))
"""

USED = """
import json, sys
from importlib.metadata import distributions, packages_distributions
from pathlib import Path
import edgepack
with edgepack.load(sys.argv[1]) as model:
    model.chat([{"role": "user", "content": "Hi"}], max_tokens=4)
    try:
        model.generate("A year: ", json_schema={"type": "integer"}, max_tokens=8)
        bound = ""
    except edgepack.EdgepackError as error:
        bound = str(error)
known = packages_distributions()
names = {name for module in list(sys.modules) for name in known.get(module.partition(".")[0], ())}
maps = Path("/proc/self/maps")  # an engine's library may be loaded and its package not imported
mapped = maps.read_text() if maps.exists() else ""
for each in distributions():
    if any(".so" in file.name and str(each.locate_file(file)) in mapped for file in each.files or ()):
        names.add(each.name)
print(json.dumps({"used": sorted(names), "bound": bound}))
"""


def measure(extras: str, source: Path, bundle: Path | None) -> dict[str, Any]:
    """Return the bytes and the bytecode of each package of a fresh install, and what a bundle used of them."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", scratch], check=True)
        python = Path(scratch) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        what = f"{source}[{extras}]" if extras else str(source)
        pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-qq", what]
        subprocess.run(pip, check=True)
        report: dict[str, Any] = {"extras": extras, "sizes": json.loads(_output(python, SIZES))}
        if bundle is not None:
            report |= json.loads(_output(python, USED, str(bundle.resolve())).splitlines()[-1])
        return report


def _output(python: Path, code: str, *arguments: str) -> str:
    command = [str(python), "-c", code, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def show(report: dict[str, Any]) -> None:
    """Print a row, and the packages that were not used."""
    sizes: dict[str, list[int]] = report["sizes"]
    megabytes, bytecode = (sum(each[place] for each in sizes.values()) / 1e6 for place in (0, 1))
    print(f"{report['extras'] or '-':<22}{len(sizes):>9}{megabytes:>9.1f}{bytecode:>10.1f}", flush=True)
    if "used" in report:
        unused = sorted(set(sizes) - set(report["used"]), key=lambda name: -sizes[name][0])
        rest = sum(sizes[name][0] for name in unused) / 1e6
        print(f"  not imported by a load, a chat and a bound answer: {len(unused)} packages, {rest:.1f} MB")
        print("  " + (", ".join(f"{name} {sizes[name][0] / 1e6:.1f}" for name in unused) or "none"))
        if report["bound"]:
            print(f"  a bound answer says: {report['bound']}")


def main() -> None:
    """Print a row for each choice of extras."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extras", nargs="*", default=EXTRAS)
    parser.add_argument("--source", type=Path, default=ROOT)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--packages", action="store_true", help="the megabytes of each package, too")
    asked = parser.parse_args()
    print(f"{'extras':<22}{'packages':>9}{'MB':>9}{'bytecode':>10}")
    for extras in asked.extras:
        report = measure(extras, asked.source.resolve(), asked.bundle)
        show(report)
        if asked.packages:
            for name, (size, _) in sorted(report["sizes"].items(), key=lambda each: -each[1][0]):
                print(f"    {name:<30}{size / 1e6:>8.1f}")


if __name__ == "__main__":
    main()
