"""Measures the bands of the findings' symptoms again: ``python -m tests.findings.bands STORE…``.

For each symptom it prints the smallest and largest size of the failures that its pattern matches in these stores, and
writes them into its band, widened by a third on both sides: of the excess over a law, or of the size where there is no
law. A band with a comment behind it was derived by other means, and stays. Failures that no symptom speaks of are
listed; sizes outside of a kept band are marked.
"""

import argparse
import math
import re
import tomllib
from collections.abc import Iterable
from typing import Any, NamedTuple

from harness.findings import FOLDER
from harness.spec import Measurement, Symptom
from harness.store import Store

START = "[[symptoms]]"
BAND = re.compile(r"^band = (\[.*?\])([ \t]*#.*)?$", re.MULTILINE)
SHARE = 1 / 3


class Failure(NamedTuple):
    case: str
    measurement: Measurement

    @property
    def size(self) -> float | None:
        size = self.measurement.size
        return size if size is not None and math.isfinite(size) else None

    @property
    def promised(self) -> bool:
        """Whether its size is a multiple of a law."""
        return bool(self.measurement.law) and "error" not in self.measurement.detail


def failures(stores: Iterable[str]) -> list[Failure]:
    """All failed figures of all runs in these stores."""
    names = ("measure", "quantity", "value", "unit", "verdict", "reason", "law", "bound", "direction", "detail")
    return [
        Failure(record["case"], Measurement(**{name: record[name] for name in names}))
        for url in stores
        for record in Store.open(url, create=False).records("*", verdict="fail")
        if record["measure"] != "claim"
    ]


def band(seen: Iterable[Failure]) -> tuple[float, float] | None:
    """The range of these failures' sizes, widened and rounded outwards to two digits; None without any size."""
    ends = [_ends(failure.size, 1.0 if failure.promised else 0.0) for failure in seen if failure.size is not None]
    return (max(min(low for low, _ in ends), 0.0), max(high for _, high in ends)) if ends else None


def _ends(size: float, centre: float) -> tuple[float, float]:
    margin = abs(size - centre) * SHARE
    return _rounded(size - margin, centre, math.floor), _rounded(size + margin, centre, math.ceil)


def _rounded(end: float, centre: float, direction: Any) -> float:
    distance = abs(end - centre)
    if not distance:
        return end
    digits = 1 - math.floor(math.log10(distance))
    return float(round(direction(round(end * 10.0**digits, 6)) / 10.0**digits, max(digits, 0)))


def rewritten(text: str, found: list[Failure], tell: Any = print) -> tuple[str, set[int]]:
    """The text of a file with new bands, and the places of the failures that its symptoms speak of."""
    head, *blocks = text.split(START)
    spoken: set[int] = set()
    for number, block in enumerate(blocks):
        symptom = Symptom(**{"band": None, **tomllib.loads(block)})
        mine = [place for place, failure in enumerate(found) if symptom.about(*failure)]
        spoken |= set(mine)
        seen = band(found[place] for place in mine)
        sizes = sorted(failure.size for failure in map(found.__getitem__, mine) if failure.size is not None)
        kept = BAND.search(block)
        note = f"{len(mine)} failures" + (f", {sizes[0]:.4g} to {sizes[-1]:.4g}" if sizes else "")
        if len(sizes) < len(mine) and not symptom.says:
            note += ", SOME WITHOUT A SIZE: it must say what their reason says"
        if kept and kept[2]:
            outside = [size for size in sizes if not tomllib.loads(kept[0])["band"][0] <= size <= symptom.band[1]]
            note += f", kept {kept[1]}" + (", OUTSIDE" if outside else "")
        elif seen:
            line = f"band = [{seen[0]:.12g}, {seen[1]:.12g}]"
            note += f", {line}"
            blocks[number] = BAND.sub(line, block) if kept else block.rstrip("\n") + f"\n{line}\n\n"
        tell(f"{symptom.measure:9} {symptom.quantity:26} {symptom.case}: {note}")
    return START.join([head, *blocks]).rstrip("\n") + "\n", spoken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", metavar="STORE")
    found = failures(parser.parse_args().stores)
    left = set(range(len(found)))
    for path in sorted({*FOLDER.glob("*.toml"), *FOLDER.glob("*.symptoms")}):
        if START in (text := path.read_text("utf-8")):
            print(path.stem)
            new, spoken = rewritten(text, found)
            path.write_text(new, "utf-8")
            left -= spoken
    for case, measurement in (found[place] for place in sorted(left)):
        print("no symptom:", case, measurement.measure, measurement.quantity, measurement.size)


if __name__ == "__main__":
    main()
