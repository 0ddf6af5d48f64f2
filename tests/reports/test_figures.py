"""Charts: suitable for the inside of a page, in the page's own colours, and true to the records."""

import re

import pytest

from harness.judge.residuals import FEWEST, judge
from harness.spec import Curves
from reports import figures, palette, tidy, timelines
from tests.reports import planted
from tests.reports.planted import measurement

SLOTS = palette.slots({engine for card in planted.TOPICS.values() for engine in card["engines"]})


def topic(name: str, records: list[planted.Record] | None = None) -> tidy.TopicView:
    view = tidy.view(planted.records() if records is None else records, planted.run(), {})
    return next(topic for topic in view.topics if topic.name == name)


def test_charts_take_every_colour_from_the_style_sheet() -> None:
    for chart in figures.figures(topic("zero"), SLOTS):
        colours = set(re.findall(r'(?:fill|stroke)="([^"]*)"', chart.svg))
        assert colours <= {"none", "currentColor"} | {c for c in colours if c.startswith("var(--")}, chart.title


def test_charts_carry_no_ids_and_no_address() -> None:
    for chart in figures.figures(topic("zero"), SLOTS):
        assert not re.search(r'\bid="|xmlns|url\(|http', chart.svg), chart.title
        assert chart.svg.startswith('<svg role="img" aria-label="ZeRO')


def test_a_topic_of_trainers_has_all_five_charts_and_one_of_functions_has_no_traffic() -> None:
    titles = ["Memory held", "Traffic by collective", "Step time", "Loss", "Error of the loss"]
    assert [chart.title for chart in figures.figures(topic("zero"), SLOTS)] == titles
    assert [chart.title for chart in figures.figures(topic("flash_attention"), SLOTS)] == ["Memory held", "Step time"]


def test_a_topic_without_figures_has_no_charts() -> None:
    records = [record for record in planted.records() if record["measure"] == "card"]
    assert figures.figures(topic("zero", records), SLOTS) == []


def test_a_chart_shows_the_setting_that_most_cases_share_and_names_it() -> None:
    chart = figures.memory(topic("zero"))
    assert chart is not None
    assert chart.caption == "dp4 · tiny · fp32 · cpu"
    assert [name for name in ("zero1", "zero2", "zero3") if f">{name}</text>" in chart.svg] == [
        "zero1",
        "zero2",
        "zero3",
    ]


def test_memory_that_no_part_explains_is_drawn_as_such() -> None:
    base = planted._base("zero", "zero1", "torch", "dp2", "fp32", "cpu")
    found = measurement("memory", "states", 1000, "bytes", "pass", law=900, detail={"parts": {"parameters": 600}})
    chart = figures.memory(topic("zero", [base | found]))
    assert chart is not None
    assert [name for _, _, name in chart.legend] == ["parameters", "not told apart", "law"]
    assert len(re.findall(r'fill="var\(--p\d\)"', chart.svg)) == 2


def test_traffic_bars_end_where_the_figure_says() -> None:
    base = planted._base("zero", "zero1", "torch", "dp2", "fp32", "cpu")
    ops = {"all_gather": {"calls": 1, "bytes": 1024}, "reduce_scatter": {"calls": 1, "bytes": 2048}}
    found = measurement("traffic", "bytes", 4096, "bytes", "pass", law=4096, detail={"by_op": ops})
    chart = figures.traffic(topic("zero", [base | found]))
    assert chart is not None
    widths = [float(width) for width in re.findall(r'<path d="M[\d.]+,3h([\d.]+)v10', chart.svg)]
    assert widths == pytest.approx([57.5, 115, 57.5], abs=0.1)  # parts of 230 px: all_gather, reduce_scatter, the rest


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    points = list(range(1000))
    thinned = figures._thin(points, figures.MAX_POINTS)
    assert (len(thinned), thinned[0], thinned[-1]) == (120, 0, 999)
    assert figures._thin([1, 2], 120) == [1, 2]


def test_an_exact_loss_leaves_no_mark_on_the_logarithmic_axis() -> None:
    base = planted._base("zero", "zero1", "torch", "dp2", "fp32", "cpu")
    detail = {"losses": [2.0, 1.0, None], "oracle_losses": [2.0, 1.0, 0.5]}
    found = measurement("parity", "loss", 0.0, "× floor", "pass", detail=detail)
    assert figures.loss_error(topic("zero", [base | found]), SLOTS) is None
    assert figures.loss(topic("zero", [base | found]), SLOTS) is not None


def test_the_runs_of_several_seeds_are_no_curve_by_step() -> None:
    base = planted._base("zero", "zero1", "torch", "dp2", "fp32", "cpu")
    runs = [Curves([1], [0.5], 1.0, [2.0, 1.0 + seed / 100]) for seed in range(FEWEST)]
    found = judge(runs, runs, "fp32")
    shown = measurement(found.measure, found.quantity, found.value, "", found.verdict, detail=found.detail)
    assert figures.figures(topic("zero", [base | shown]), SLOTS) == []


def test_engines_have_their_own_colours_and_new_ones_a_free_one() -> None:
    alone, together = palette.slots(["torch", "zeta"]), palette.slots(["zeta", "torch", "deepspeed", "eta", "theta"])
    assert alone["torch"] == together["torch"] == 1
    assert len(set(together.values())) == 5
    assert max(palette.slots([f"engine{n}" for n in range(30)]).values()) < palette.SLOTS


def test_a_timeline_draws_and_names_each_action_and_beside_it_the_schedule() -> None:
    spans = [[["F", 0, 0, 0.0, 100.0], ["B", 0, 0, 100.0, 300.0]], [["F", 1, 0, 100.0, 400.0]]]
    base = planted._base("pipeline", "gpipe", "torch", "pp2", "fp32", "cpu")
    found = measurement("timeline", "bubble", 0.25, "", "pass", law=0.25, detail={"measured": spans, "ideal": spans})
    (chart,) = timelines.timelines(topic("pipeline", [base | found]))
    assert [name for _, _, name in chart.legend] == ["forward", "backward"]
    titles = re.findall(r"<title>([^<]*)</title>", chart.svg)
    assert titles == [
        "forward, stage 0, micro-batch 0: 100\u202fµs",
        "backward, stage 0, micro-batch 0: 200\u202fµs",
        "forward, stage 1, micro-batch 0: 300\u202fµs",
    ]
    boxes = re.findall(r"M([\d.]+),0h([\d.]+)v8h", chart.svg)
    actions = [(float(x), float(width)) for x, width in boxes if width != "360"]
    assert actions == [(0.0, 89.6), (90.0, 179.6), (90.0, 269.6)] * 2  # 360 px for 400 µs, 0.4 px between two
