"""Tables of one quantity: one row per setting, one column per engine; a long table is preceded by one row per
variant."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from reports import units
from reports.tidy import CaseView, Record, Setting, TopicView, measured, parity, worst

MOST_ROWS = 8  # a longer table is folded behind one row per variant
FIELDS = ("topology", "workload", "dtype", "device")


@dataclass(frozen=True)
class Cell:
    """``ratio`` is the number that a folded row summarises: error over floor, measured over promised, or over the
    least. ``seen``: the smallest relative scale error that the figure could have shown."""

    verdict: str
    main: str
    sub: str = ""
    note: str = ""
    ratio: float | None = None
    fallback: bool = False
    against_law: bool = False
    seen: float | None = None


@dataclass(frozen=True)
class Row:
    head: tuple[str, ...]
    law: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Pivot:
    """``fixed`` names the values that all rows share and no column repeats; ``rows`` are folded if ``all_rows``
    exist."""

    title: str
    explanation: str
    fixed: str
    columns: tuple[str, ...]
    engines: tuple[str, ...]
    has_law: bool
    rows: tuple[Row, ...]
    all_rows: tuple[Row, ...] = ()


TITLES = {
    ("memory", "states"): ("Model states", "bytes held between backward and update, on the worst rank"),
    ("memory", "peak"): ("Peak memory", "largest bytes in a step without collected tensors"),
    ("memory", "saved"): ("Saved for backward", "bytes kept between forward and backward"),
    ("traffic", "bytes"): ("Traffic", "bytes per rank and step, at the cost of a ring"),
    ("throughput", "step_time"): ("Step time", "median over interleaved rounds, with its 95 % interval"),
    ("nonfinite", "lost"): ("NaN on one rank", "the share of the elements that it should have reached and did not"),
    ("quality", "loss"): ("Learning", "the last loss of the learning curve"),
}
PARITY = (
    "Parity",
    "largest error over its noise floor; sees: the smallest scale error that would have been visible",
)


def parity_table(topic: TopicView) -> Pivot | None:
    found = {
        (setting, engine): _parity_cell(case, record)
        for setting, row in topic.settings.items()
        for engine, case in row.items()
        if (record := parity(case))
    }
    return _pivot(topic, PARITY, found, {})


def figure_tables(topic: TopicView) -> list[Pivot]:
    """One table for every other quantity, those with a law first."""
    names = dict.fromkeys(
        (record["measure"], record["quantity"])
        for case in topic.cases
        for record in case.records
        if record["measure"] != "parity" and (record["quantity"] and measured(record))
    )
    tables = [_figure_table(topic, *name) for name in names]
    return sorted((table for table in tables if table), key=lambda table: not table.has_law)


def _figure_table(topic: TopicView, measure: str, quantity: str) -> Pivot | None:
    found: dict[tuple[Setting, str], Cell] = {}
    laws: dict[Setting, set[str]] = defaultdict(set)
    for setting, row in topic.settings.items():
        records = {engine: record for engine, case in row.items() for record in case.of(measure, quantity)[:1]}
        least = min((record["value"] for record in records.values() if measured(record)), default=0.0)
        for engine, record in records.items():
            found[setting, engine] = _cell(record, least if len(records) > 1 else 0.0)
            if record["law"] is not None:
                laws[setting].add(units.figure(record["law"], record["unit"]))
    title = TITLES.get((measure, quantity), (f"{measure.capitalize()}: {quantity}", ""))
    promised = {setting: " / ".join(sorted(texts)) for setting, texts in laws.items()}
    return _pivot(topic, title, found, promised)


def _parity_cell(case: CaseView, record: Record) -> Cell:
    if record["value"] is None:
        return _without_figure(record)
    detail = record["detail"]
    seen = detail.get("resolution")
    sub = f"sees {units.share(seen)}" if seen is not None else ""
    each = [f"{r['quantity']} {units.figure(r['value'], r['unit'])}" for r in case.of("parity") if r["quantity"]]
    note = "; ".join(each + ([f"worst tensor {detail['tensor']}"] if detail.get("tensor") else []))
    fallback = any(r["detail"].get("fallback") for r in case.of("parity"))
    return Cell(record["verdict"], units.ratio(record["value"]), sub, note, record["value"], fallback, seen=seen)


def _cell(record: Record, least: float) -> Cell:
    value, unit, detail = record["value"], record["unit"], record["detail"]
    if value is None:
        return _without_figure(record)
    ratio, sub = None, ""
    if record["law"]:
        ratio = value / record["law"]
        sub = f"{law_ratio(ratio)} law"
    elif measured(record) and least > 0 and record["measure"] != "quality":
        ratio = detail.get("ratio_to_fastest") or value / least
        sub = f"{units.ratio(ratio)} best"
    facts = [units.first_line(record["reason"])]
    if detail.get("low") is not None and detail.get("high") is not None:
        interval = f"{units.figure(detail['low'], unit)} to {units.figure(detail['high'], unit)}"
        facts.append(f"95 % interval {interval}")
        sub = ", ".join(part for part in (interval, sub, "marked" if detail.get("marked") else "") if part)
    if detail.get("tokens_per_second") is not None:
        facts.append(units.si(detail["tokens_per_second"], "tokens/s"))
    if detail.get("mfu") is not None:
        facts.append(f"{detail['mfu']:.1%} of the matmul ceiling")
    facts += [
        f"{name}: {detail[name]}"
        for name in ("marked", "meter", "fallback", "products", "device_note")
        if detail.get(name)
    ]
    note = "; ".join(fact for fact in facts if fact)
    return Cell(
        record["verdict"],
        units.figure(value, unit),
        sub,
        note,
        ratio,
        bool(detail.get("fallback")),
        bool(record["law"]),
    )


def law_ratio(value: float) -> str:
    """``1.004×``: laws hold to the byte or to a per cent, so the third decimal matters."""
    return f"{value:.3f}×" if value < 10 else units.ratio(value)


def _without_figure(record: Record) -> Cell:
    return Cell(record["verdict"], record["verdict"], note=units.first_line(record["reason"]))


def _pivot(
    topic: TopicView,
    title: tuple[str, str],
    found: Mapping[tuple[Setting, str], Cell],
    laws: Mapping[Setting, str],
) -> Pivot | None:
    if not found:
        return None
    settings = [setting for setting in topic.settings if any((setting, e) in found for e in topic.engines)]
    engines = tuple(e for e in topic.engines if any((setting, e) in found for setting in settings))
    varying = [name for name in FIELDS if len({getattr(setting, name) for setting in settings}) > 1]
    fixed = " · ".join(getattr(settings[0], name) for name in FIELDS if name not in varying)
    rows = tuple(
        Row(
            (setting.variant, *(getattr(setting, name) for name in varying)),
            laws.get(setting, units.NONE),
            tuple(found.get((setting, engine)) for engine in engines),
        )
        for setting in settings
    )
    whole = Pivot(*title, fixed, ("variant", *varying), engines, bool(laws), rows)
    if len(rows) <= MOST_ROWS:
        return whole
    folded = tuple(_fold(variant, [row for row in rows if row.head[0] == variant]) for variant in _variants(rows))
    measured_by = "measured ÷ promised" if laws else ("error ÷ floor" if title == PARITY else "measured ÷ best")
    ranged = any(cell.ratio is not None for cell in found.values())
    explanation = "; ".join(part for part in (title[1], f"here the range of {measured_by}" if ranged else "") if part)
    return replace(whole, explanation=explanation, rows=folded, all_rows=rows)


def _variants(rows: tuple[Row, ...]) -> Iterator[str]:
    yield from dict.fromkeys(row.head[0] for row in rows)


def _fold(variant: str, rows: list[Row]) -> Row:
    columns = zip(*(row.cells for row in rows), strict=True)
    return Row((variant,), "", tuple(_summary([cell for cell in column if cell]) for column in columns))


def _summary(cells: list[Cell]) -> Cell | None:
    """Several settings in one cell: the worst verdict, and the range of the ratios."""
    if not cells:
        return None
    verdict = worst(cell.verdict for cell in cells if cell.verdict != "skipped") or "skipped"
    ratios = [cell.ratio for cell in cells if cell.ratio is not None]
    deciding = next(cell for cell in cells if cell.verdict == verdict)
    same = sum(cell.verdict == verdict for cell in cells)
    skipped = sum(cell.verdict == "skipped" for cell in cells)
    counts = ((same, verdict if verdict not in ("pass", "skipped") else ""), (skipped, "skipped"))
    facts = [f"{count} of {len(cells)} {word}" for count, word in counts if count and word]
    blindest = max((cell.seen for cell in cells if cell.seen is not None), default=None)
    sub = ", ".join(facts + ([f"sees {units.share(blindest)}"] if blindest is not None else []))
    if not ratios:
        return Cell(verdict, verdict, sub if skipped < len(cells) else "", deciding.note)
    text = law_ratio if any(cell.against_law for cell in cells) else units.ratio
    low, high = text(min(ratios)), text(max(ratios))
    main = low if low == high else f"{low.removesuffix('×')}–{high}"
    return Cell(verdict, main, sub, deciding.note, max(ratios), any(cell.fallback for cell in cells))
