"""Which measure sees which planted fault: every fault under every measure that its case has.

``python -m tests.planted.matrix`` prints the matrix that the report shows; with ``--measure`` it is measured anew, in a
few minutes on two cores.
"""

import argparse
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness import catalog
from harness.judge.calibration import KILLS, kills
from tests import labs
from tests.planted.faults import BROKEN, EVERY, FAULTS, Planted, fails, judged

OF_ALL = ("parity", "memory", "traffic", "peers")
MEASURES = (*OF_ALL, *dict.fromkeys(name for fault in EVERY for name in fault.fault.finds if name not in OF_ALL))


def measured(planted: Sequence[Planted]) -> Iterator[dict[str, Any]]:
    """For each fault, the figures of each measure that fail in the first precision in which it must be found."""
    lab = labs.make(BROKEN)
    try:
        for fault in planted:
            named = next(iter(fault.fault.finds.values()))
            dtype = next(iter(named))
            found = {
                measure: sorted(
                    quantity for quantity, figure in judged(lab, fault, measure, dtype).items() if fails(figure)
                )
                for measure in _taken(fault)
            }
            about = (inspect.getdoc(catalog.load(fault.build)) or "").replace("\n", " ")
            yield {"fault": fault.name, "topic": fault.topic, "about": about, "dtype": dtype, "found": found}
    finally:
        lab.runner.close()


def _taken(planted: Planted) -> list[str]:
    """Other measures than those of all are taken only where the fault names them, and of poisoned work nothing else."""
    case = planted.case("fp32")
    able = [name for name in OF_ALL if name != "traffic" or case.topology.world_size > 1]
    everywhere = [] if case.workload.poisoned else able
    return [name for name in MEASURES if name in everywhere or name in planted.fault.finds]


def shown(rows: Sequence[Mapping[str, Any]]) -> str:
    head = f"{'fault':<38} {'topic':<22} " + " ".join(f"{measure:<9}" for measure in MEASURES)
    lines = [
        f"{row['fault']:<38} {row['topic']:<22} "
        + " ".join(f"{'×' if row['found'].get(name) else '·' if name in row['found'] else '':<9}" for name in MEASURES)
        for row in rows
    ]
    return "\n".join([head, *lines, f"{len(rows)} faults; × finds it, · was taken and does not."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure it anew; without it, the matrix is printed")
    if parser.parse_args().measure:
        rows = list(measured(EVERY))
        KILLS.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    print(shown([row for row in kills() if row["fault"] in FAULTS]))


if __name__ == "__main__":
    main()
