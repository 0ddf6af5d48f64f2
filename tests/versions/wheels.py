"""A package index in a folder: wheels of a small package, whose releases differ in one line."""

import zipfile
from pathlib import Path

from tests.findings.examples import RECORD

PACKAGE = "faultlib"
FINDING = RECORD.replace("deepspeed 0.19.8", f"{PACKAGE} 1.2").replace('engine = "deepspeed"', f'engine = "{PACKAGE}"')
SCRIPT = f"""import sys
import {PACKAGE}
if {PACKAGE}.FACTOR == 0:
    print("cannot be judged: a factor of 0")
    sys.exit(2)
print("still there" if {PACKAGE}.FACTOR > 1 else "gone")
sys.exit({PACKAGE}.FACTOR > 1)
"""


def wheel(folder: Path, version: str, text: str, package: str = PACKAGE, requires: str = "") -> None:
    """The wheel of a release whose module has this text."""
    info = f"{package}-{version}.dist-info"
    needs = f"Requires-Dist: {requires}\n" if requires else ""
    files = {
        f"{package}/__init__.py": text,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(folder / f"{package}-{version}-py3-none-any.whl", "w") as archive:
        for name, content in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, content)


def factors(folder: Path, **factors: int) -> None:
    """Releases 1.<n> with their factors, as ``_1=2`` for 1.1 with a factor of 2."""
    for name, factor in factors.items():
        wheel(folder, f"1.{name[1:]}", f"FACTOR = {factor}\n")
