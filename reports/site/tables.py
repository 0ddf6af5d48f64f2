"""The rows of the site's lists, as plain data."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.spec.finding import KINDS
from harness.store import Store
from reports import units
from reports.pages import STATUSES
from reports.site import badges, source
from reports.site.names import SAFE, TAKEN, case_page
from reports.site.source import Run
from reports.site.summary import verdict_counts

Facts = Mapping[str, Any]
GROUPS = {"wrong result": "Wrong results", "by design": "By design", "not comparable": "Not comparable here"}
GROUPS |= {"intended": "Intended by the cases"}
COSTS = "What costs memory, traffic, messages and time"
BLANK: dict[str, Any] = {  # a finding of an older store may lack some
    **dict.fromkeys(("engine", "title", "consequence", "cause", "since", "issue", "public", "link"), ""),
    **dict.fromkeys(("seen", "right", "needs"), ()),
    "kind": KINDS[0],
    "silent": False,
    "default": False,
}


def run_row(summary: Facts, run: Run) -> dict[str, Any]:
    return {**summary, "status": run.status, "torch": run.torch, "counts": verdict_counts(summary)}


def machines(rows: Sequence[Facts]) -> list[dict[str, Any]]:
    """``rows``: of the runs, the newest first."""
    counts = Counter(row["hardware"] for row in rows)
    found = []
    for hardware, number in counts.items():
        mine = [row for row in rows if row["hardware"] == hardware]
        timed = next((row for row in mine if row["noise"]), None)
        noise = {"noise": timed["noise"], "timed": timed["run"]} if timed else {"noise": None, "timed": ""}
        found.append({"hardware": hardware, "runs": number, "run": mine[0]["run"], **noise})
    return found


def standing(rows: Sequence[Facts]) -> list[tuple[dict[str, Any], badges.Badge]]:
    """The newest run of each topic and engine, with its badge."""
    newest: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        for topic, engines in row["tally"].items():
            for engine, counts in engines.items():
                names = {name: row[name] for name in ("run", "hardware", "torch")}
                newest.setdefault((topic, engine), {"topic": topic, "engine": engine, "counts": counts, **names})
    return [
        (row, badges.standing(topic, engine, row["counts"]))
        for (topic, engine), row in sorted(newest.items())
        if engine
    ]


def cases(facts: Iterable[Facts], runs: Mapping[str, Run]) -> dict[str, list[dict[str, Any]]]:
    """By topic."""
    found: dict[str, list[dict[str, Any]]] = {}
    for each in sorted(facts, key=lambda each: (each["topic"], each["case"])):
        page = case_page(each["case"]).partition("/")[2]
        row = {**each, "page": page, "hardware": runs[each["run"]].machine}
        found.setdefault(each["topic"], []).append(row)
    return found


def findings(
    store: Store, rows: Sequence[Facts], given: Mapping[str, Facts], versions: Sequence[Facts]
) -> dict[str, dict[str, Any]]:
    """By id, in the order in which they are shown. ``given`` are those of this installation; the store's newest run may
    have others."""
    stored: dict[str, Any] = {}
    if holder := next((row["run"] for row in rows if row["findings"]), None):
        stored = {record["quantity"]: record["detail"] for record in source.records(store, holder, measure="finding")}
    found = {}
    for name, about in {**stored, **given}.items():
        if not SAFE.fullmatch(name) or name == TAKEN:
            continue
        shown = [row for row in rows if name in row["shown"]]
        cases = dict.fromkeys(case for row in shown for case in row["shown"][name])
        found[name] = {
            **BLANK,
            **about,
            "id": name,
            "last": shown[0] if shown else None,
            "first": shown[-1] if shown else None,
            "cases": list(cases),
            "releases": _releases(name, versions),
        }
    return dict(sorted(found.items(), key=_place))


def _place(item: tuple[str, Facts]) -> tuple[Any, ...]:
    name, about = item
    kind = KINDS.index(about["kind"]) if about["kind"] in KINDS else len(KINDS)
    return kind, not about["silent"], not about["default"], name


def _releases(name: str, versions: Sequence[Facts]) -> list[tuple[str, str]]:
    return [(t["package"], row["summary"]) for t in versions for row in t["findings"] if row["finding"] == name]


def groups(found: Mapping[str, Facts]) -> dict[str, list[Facts]]:
    grouped: dict[str, list[Facts]] = {}
    for about in found.values():
        grouped.setdefault(GROUPS.get(about["kind"], COSTS), []).append(about)
    return grouped


def claims(store: Store, rows: Sequence[Facts]) -> list[dict[str, Any]]:
    """The newest record of each claim; published figures that did not hold come first."""
    holders: dict[str, Facts] = {}
    for row in rows:
        for topic in row["claims"]:
            holders.setdefault(topic, row)
    found = []
    for run, row in {row["run"]: row for row in holders.values()}.items():
        for record in source.records(store, run, measure="claim"):
            if holders[record["topic"]]["run"] != run:
                continue
            detail = record["detail"] or {}
            found.append(
                {
                    "topic": record["topic"],
                    "name": record["quantity"],
                    "text": detail.get("text", ""),
                    "source": detail.get("source", ""),
                    "arithmetic": detail.get("arithmetic", ""),
                    "status": detail.get("status") or record["verdict"],
                    "published": units.figure(record["law"], record["unit"]),
                    "measured": units.figure(record["value"], record["unit"]),
                    "remark": units.first_line(record["reason"]),
                    **{name: row[name] for name in ("run", "hardware", "torch")},
                }
            )
    order = {status: place for place, status in enumerate(STATUSES)}
    return sorted(found, key=lambda row: (order.get(row["status"], -1), row["topic"], row["name"]))
