"""Publishes a store as a folder of static pages; only pages whose content may have changed are made again."""

import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from harness.history import Alarm
from harness.store import Store, export, published
from harness.store.query import frame
from reports import render
from reports.site import badges, case, feeds, source, tables, trends
from reports.site.folder import Folder, SiteError
from reports.site.names import case_page, run_folder, run_page, safe
from reports.site.site import Site, asset, described, digest
from reports.site.summary import summary

ON_INDEX, NEWS = 50, 12  # runs and news on the first page
DATA = "2"  # changes with the content of run.json, the tables beside it and the report
NEVER = "1970-01-01T00:00:00+00:00"


@dataclass(frozen=True)
class Published:
    """``seconds``: by part of the work. ``left``: files that somebody changed, which were to be removed."""

    index: Path
    written: tuple[str, ...]
    left: tuple[str, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]


def publish(
    store: Store,
    root: Path,
    findings: Mapping[str, Mapping[str, Any]] | None = None,
    scripts: Mapping[str, str] | None = None,
    versions: Sequence[Path] = (),
    submissions: Sequence[Mapping[str, Any]] = (),
    url: str = "",
    again: bool = False,
    prune: bool = False,
    seek: trends.Seek = trends.unsought,
    tell: Callable[[str], None] = lambda line: None,
) -> Published:
    """``findings`` of this installation and their ``scripts`` by id; ``versions``: files of ``plumbline versions``;
    ``submissions``: checked bundles, with their ``content`` and what the page says of each; ``url``: the address of the
    site, for the feeds; ``again``: make every page anew; ``prune``: remove runs that the store does not have; ``seek``
    finds the change points; ``tell`` gets lines of progress.

    Raises :class:`SiteError`, or :class:`harness.store.StoreError`. The index is written when each of its links
    leads to a page: first of all others where the site has a page of every case, and again after the last page.
    """
    tables_of = [_versions(path) for path in versions]
    heads = source.cases(store)  # read first: what is written from now on is seen by the next publish
    runs = source.runs(store)
    with Folder.open(root) as folder:
        site = Site(store, folder, tell, again, runs, url)
        site.given, site.scripts, site.versions = findings or {}, scripts or {}, tables_of
        site.submissions = submissions
        if not prune:
            _same_store(site)
        clock = _Clock(site.seconds)
        rows = _runs(site)
        clock.lap("runs")
        _assets(site)
        known = tables.findings(store, rows, site.given, site.versions)
        site.finding_ids = set(known)
        alarms, site.trend_note = trends.stored(folder)
        _run_pages(site, rows)
        _findings(site, known)
        clock.lap("findings and runs' pages")
        pages = [case_page(name) for name in heads]
        if set(pages) <= folder.entries.keys():  # every link leads to a page, if not yet to the newest
            _index(site, rows, [folder.facts(page) for page in pages], known, alarms)
        clock.lap("index")
        alarms, site.trend_note = trends.alarms(store, folder, seek, digest([run.head for run in runs]), again)
        clock.lap("trend")
        facts = _cases(site, heads, alarms)
        clock.lap("cases")
        _index(site, rows, facts, known, alarms)
        clock.lap("index with all cases")
        left = folder.finish()
        clock.lap("manifest")
        return Published(root / "index.html", tuple(folder.written), tuple(left), site.seconds, tuple(site.notes))


def _same_store(site: Site) -> None:
    """A store that lacks runs of the site is probably not the one that the site was made from."""
    ours = {f"{run_folder(run.run)}/run.json" for run in site.runs}
    gone = [name.split("/")[1] for name in site.folder.below("runs") if name.endswith("/run.json") and name not in ours]
    if gone:
        raise SiteError(
            f"{site.folder.root} has {len(gone)} runs that store {site.store.place} does not have, as {gone[0]}; name "
            "the store that it was made from, or add --prune to remove them"
        )


class _Clock:
    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds, self.last = seconds, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[name], self.last = now - self.last, now


def _runs(site: Site) -> list[dict[str, Any]]:
    """The rows of all runs, the newest first; makes the data and the reports of those that are new or have changed."""
    for place, run in enumerate(reversed(site.runs)):
        earlier = site.runs[len(site.runs) - place :]
        _data(site, run, earlier)
        _report(site, run)
    rows = []
    for run in site.runs:
        stored = json.loads((site.folder.root / run_folder(run.run) / "run.json").read_text("utf-8"))
        rows.append(tables.run_row(stored, run))
    return rows


def _data(site: Site, run: source.Run, earlier: Sequence[source.Run]) -> None:
    place, made = run_folder(run.run), f"{run.head}, data {DATA}"
    names = [f"{place}/{name}" for name in ("records.csv", "records.parquet", "run.json")]
    if all(site.fresh(name, made) for name in names):
        return
    site.tell(f"run {run.run}")
    records = source.records(site.store, run.run)
    table = frame(records)
    for name, format in zip(names, ("csv", "parquet"), strict=False):
        site.folder.write_by(name, made, partial(_exported, table, format))
    text = json.dumps(summary(site.store, run, records, earlier), indent=1, ensure_ascii=False) + "\n"
    site.folder.write(names[-1], text.encode("utf-8", "replace"), made)


def _exported(table: Any, format: str, path: Path) -> None:
    export(table, format, path)


def _report(site: Site, run: source.Run) -> None:
    place = f"{run_folder(run.run)}/report"
    below = site.folder.below(place)
    made = f"{run.head}, data {DATA}"
    if below and all(site.fresh(name, made) for name in below):
        return
    if run.head.startswith("no records"):
        return
    site.tell(f"report of run {run.run}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            render.write(site.store, run.run, Path(folder))
        except render.ReportError as error:
            site.notes.append(str(error))
        else:
            site.folder.adopt(place, Path(folder), made)


def _assets(site: Site) -> None:
    style = asset("style.css") + asset("site.css")
    site.folder.write("assets/site.css", style.encode())
    site.folder.write("assets/site.js", asset("site.js").encode())


def _cases(site: Site, heads: Mapping[str, source.Head], alarms: Sequence[Alarm]) -> list[Mapping[str, Any]]:
    """Makes the pages of the cases that have new records; returns what the list of cases says of each."""
    by_case: dict[str, list[Alarm]] = {}
    for alarm in alarms:
        by_case.setdefault(alarm.series.case, []).append(alarm)
    common = f"{site.code}, PyTorch {site.torch}, {digest([*sorted(site.finding_ids), site.trend_note])}"
    facts: list[Mapping[str, Any]] = []

    @lru_cache(maxsize=2)  # the order below keeps cases of one run together
    def records(run: str) -> dict[str, list[dict[str, Any]]]:
        found: dict[str, list[dict[str, Any]]] = {}
        for record in source.records(site.store, run):
            if record["measure"] not in source.NOT_FIGURES:
                found.setdefault(record["case"], []).append(record)
        return found

    for done, (name, head) in enumerate(sorted(heads.items(), key=lambda item: (item[1].run, item[0]))):
        mine = by_case.get(name, [])
        run = site.by_id[head.run]  # while it goes on, it may replace a record by another one of the same number
        made = f"{head.text}, {run.head}, {common}, {digest([repr(alarm) for alarm in mine])}"
        address = case_page(name)
        if not site.fresh(address, made):
            rows = [row for row in source.history(site.store, name) if row["run"] in site.by_id]
            newest = max({row["run"] for row in rows}, key=lambda run: (site.by_id[run].started, run))
            content, found = _case(site, address, name, rows, records(newest)[name], mine)
            site.folder.write(address, content, made, found)
            if done % 100 == 99:
                site.tell(f"{done + 1} of {len(heads)} cases")
        facts.append(site.folder.facts(address))
    return facts


def _case(
    site: Site,
    address: str,
    name: str,
    rows: Sequence[Mapping[str, Any]],
    records: Sequence[Mapping[str, Any]],
    alarms: Sequence[Alarm],
) -> tuple[bytes, dict[str, Any]]:
    for shown in case.SHOWN:
        found = case.page(name, rows, site.by_id, records, alarms, site.torch, shown)
        content = site.page("case.html", address, name, page=found, environment=described(found.run.environment))
        if len(content) <= case.LIMIT:
            break
    return content, found.facts


def _run_pages(site: Site, rows: Sequence[Mapping[str, Any]]) -> None:
    common = f"{site.code}, {digest(sorted(site.finding_ids))}"
    for row in rows:
        address = run_page(row["run"])
        made = f"{site.by_id[row['run']].head}, {common}"
        if not site.fresh(address, made):
            report = f"{run_folder(row['run'])}/report/index.html" in site.folder.kept
            note = next((note for note in site.notes if row["run"] in note), "")
            environment = described(row["environment"])
            content = site.page(
                "run.html",
                address,
                f"Run {row['run']}",
                row=row,
                report=report,
                report_note=note,
                environment=environment,
            )
            site.folder.write(address, content, made)


def _findings(site: Site, known: Mapping[str, Mapping[str, Any]]) -> None:
    site.put("findings.html", "findings/index.html", "What is wrong in the engines", groups=tables.groups(known))
    for name, about in known.items():
        script = site.scripts.get(name, "")
        if script:
            site.folder.write(f"findings/{name}.py", script.encode())
        site.put("finding.html", f"findings/{name}.html", about["title"] or name, one=about, script=script)
    wrong = sum(about["kind"] == "wrong result" for about in known.values())
    site.folder.write("badges/findings.svg", badges.findings(wrong, len(known)).svg.encode())


def _index(
    site: Site,
    rows: Sequence[Mapping[str, Any]],
    facts: Sequence[Mapping[str, Any]],
    known: Mapping[str, Mapping[str, Any]],
    alarms: Sequence[Alarm],
) -> None:
    """The pages that list others; the first page last."""
    news = feeds.items(rows, known, alarms)
    updated = rows[0]["started"] if rows else NEVER
    site.folder.write("feed.xml", feeds.atom(news, site.url, updated))
    site.folder.write("feed.json", feeds.feed(news, site.url))
    standing = []
    for row, badge in tables.standing(rows):
        name = f"badges/{safe(row['topic'] + '-' + row['engine'])}.svg"
        site.folder.write(name, badge.svg.encode())
        standing.append({**row, "badge": name, "text": badge.text, "width": badge.width})
    site.put("standing.html", "standing.html", "By topic and engine", rows=standing)
    site.put("claims.html", "claims.html", "Claims ledger", rows=tables.claims(site.store, rows))
    for table in site.versions:
        site.folder.write(table["file"], (json.dumps(table["stored"], indent=1, ensure_ascii=False) + "\n").encode())
    site.put("versions.html", "versions.html", "Releases", tables=site.versions)
    entered = []
    for each in site.submissions:
        name = f"submissions/{each['digest'][:16]}.plumbline.zip"
        site.folder.write(name, each["content"])
        entered.append({**each, "file": name})
    site.put("submissions.html", "submissions.html", "Submissions", rows=entered)
    site.put("verify.html", "verify.html", "Repeat, check, enter")
    site.put("cases.html", "cases/index.html", "Cases", topics=tables.cases(facts, site.by_id))
    site.put("runs.html", "runs/index.html", "Runs", rows=rows)
    site.put(
        "index.html",
        "index.html",
        "Runs",
        rows=rows[:ON_INDEX],
        run_count=len(rows),
        case_count=len(facts),
        figure_count=sum(row["records"] for row in rows),
        wrong_count=sum(about["kind"] == "wrong result" for about in known.values()),
        outdated_count=sum(each["torch"] != site.torch for each in facts),
        machines=tables.machines(rows),
        news=news[:NEWS],
    )


def _versions(path: Path) -> dict[str, Any]:
    """A table of ``plumbline versions``, with what the page needs beside."""
    try:
        stored = published(json.loads(path.read_text("utf-8")))
        environment = stored["environment"]
        table = {name: stored[name] for name in ("package", "started", "command", "releases", "findings", "cases")}
        shown = {name: str(table[name]) for name in ("package", "started", "command")}
        machine = source.Run("", "", "", "", None, environment, "").machine
        named = f"{shown['package']}-{shown['started']}".lower()
        return {
            **table,
            **shown,
            "environment": environment,
            "hardware": machine,
            "file": f"versions/{safe(named)}.json",
            "stored": stored,
        }
    except OSError as error:
        raise SiteError(f"--versions {path}: {error.strerror}; give a file that plumbline versions wrote") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SiteError(f"--versions {path}: no table of plumbline versions ({error!r})") from None
