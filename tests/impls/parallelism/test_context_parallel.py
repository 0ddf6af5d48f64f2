"""Context parallelism: layouts by counting, rings and exchanges on two and four CPU ranks, and rejected work."""

import io
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.launch.base import World
from harness.launch.local import LocalLauncher
from harness.launch.outcome import Done, Job, Unsupported, describe
from harness.launch.problem import TORCH_DTYPES, Drawn
from harness.spec import ModelConfig, Topology, Workload
from harness.spec import Unsupported as Refused
from harness.spec.run import FunctionRun
from impls.acceleration.flash_attention.reference import naive
from impls.acceleration.flash_attention.rules import Rules
from impls.parallelism.context_parallel import CARD, flash_attn_on_cpu, laws, problem, reference, ring, ulysses
from impls.parallelism.context_parallel import layouts as layouts_of
from impls.parallelism.context_parallel.block_attention import attend
from impls.parallelism.context_parallel.layouts import LAYOUTS, blocks, documents, padded, runs, work
from impls.parallelism.context_parallel.spread import Spread
from tests.impls.oracle import distance

layouts = st.sampled_from(LAYOUTS)
PROBLEM = problem.__name__
quietly = settings(deadline=None)  # another process's load must not fail the test


def on_ranks(layout: str, ranks: int, length: int) -> list[list[int]]:
    """The positions of each rank."""
    return [[p for run in runs(layout, rank, ranks, length) for p in range(length)[run]] for rank in range(ranks)]


# Layouts


@quietly
@given(layout=layouts, ranks=st.integers(1, 5), group=st.integers(1, 3), length=st.integers(1, 40))
def test_every_position_lies_on_one_rank_and_in_order(layout: str, ranks: int, group: int, length: int) -> None:
    size = padded(length, layout, ranks, group)
    assert length <= size < length + 2 * ranks * group
    places = on_ranks(layout, ranks, size)
    assert sorted(p for mine in places for p in mine) == list(range(size))
    assert all(mine == sorted(mine) and len(mine) == size // ranks for mine in places)


@quietly
@given(layout=layouts, ranks=st.integers(1, 4), lengths=st.lists(st.integers(1, 12), min_size=1, max_size=3))
def test_blocks_are_the_pairs_that_a_rank_may_see_and_no_others(layout: str, ranks: int, lengths: list[int]) -> None:
    sizes = [padded(length, layout, ranks) for length in lengths]
    places = [[(i, p) for i, n in enumerate(sizes) for p in on_ranks(layout, ranks, n)[r]] for r in range(ranks)]
    local = [size // ranks for size in sizes]
    for rank in range(ranks):
        for source in range(ranks):
            seen = {
                (row, column)
                for rows, columns, causal in blocks(layout, rank, source, local)
                for i, row in enumerate(range(rows.start, rows.stop))
                for j, column in enumerate(range(columns.start, columns.stop))
                if not causal or j <= i
            }
            mine, theirs = places[rank], places[source]
            allowed = {
                (row, column)
                for row, (document, place) in enumerate(mine)
                for column, (other, earlier) in enumerate(theirs)
                if document == other and earlier <= place
            }
            assert seen == allowed
            assert sum(block.pairs for block in blocks(layout, rank, source, local)) == len(allowed)


@quietly
@given(ranks=st.integers(1, 6), lengths=st.lists(st.integers(1, 20), min_size=1, max_size=3))
def test_zigzag_gives_all_ranks_the_same_work_in_every_step(ranks: int, lengths: list[int]) -> None:
    counted = work("zigzag", ranks, [padded(length, "zigzag", ranks) // ranks for length in lengths])
    assert all(steps == counted[0] for steps in counted)


@quietly
@given(ranks=st.integers(2, 6), size=st.integers(1, 20))
def test_contiguous_leaves_the_last_rank_the_most_and_striped_nearly_the_same_for_all(ranks: int, size: int) -> None:
    total = (ranks * size) * (ranks * size + 1) // 2
    for layout in ("contiguous", "striped"):
        counted = [sum(steps) for steps in work(layout, ranks, [size])]
        assert sum(counted) == total
        assert counted == sorted(counted)
        # a later rank sees size² or size more pairs with each earlier rank than that one sees with it
        assert counted[-1] - counted[0] == (ranks - 1) * (size**2 if layout == "contiguous" else size)


def steps(layout: str, ranks: int, length: int) -> list[str]:
    """The step of the ring in which each query meets each key, by the query's position."""
    places = on_ranks(layout, ranks, length)
    met = [[" "] * length for _ in range(length)]
    for rank in range(ranks):
        for step in range(ranks):
            source = ring.Ring(None, rank, ranks, []).source(step)
            for rows, columns, causal in blocks(layout, rank, source, [length // ranks]):
                for i, row in enumerate(places[rank][rows]):
                    for j, column in enumerate(places[source][columns]):
                        if not causal or j <= i:
                            met[row][column] = str(step)
    return [" ".join(row).rstrip() for row in met]


def test_the_pictures_of_layouts_are_what_they_do() -> None:
    drawn = layouts_of.__doc__.splitlines()
    table = zip(*(steps(layout, 4, 8) for layout in LAYOUTS), strict=True)
    for position, row in enumerate(table):
        line = "".join(f"{text:21}" for text in row).rstrip()
        assert f"    {position}       {line}" in drawn
    for layout, length in zip(LAYOUTS, (4, 8, 8), strict=True):
        places = " │ ".join(" ".join(map(str, mine)) for mine in on_ranks(layout, 4, length))
        assert any(line.startswith(f"    {layout:12} {places} ") for line in drawn)


def test_the_picture_of_the_ring_is_what_it_does() -> None:
    drawn = ring.__doc__.splitlines()
    for rank in range(4):
        blocks_here = "   ".join("k" + "₀₁₂₃"[ring.Ring(None, rank, 4, []).source(step)] for step in range(4))
        assert any(line.startswith(f"    rank {rank}      {blocks_here}") for line in drawn)


def test_an_unknown_layout_is_named_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="layout 'spiral' is none of contiguous, striped, zigzag"):
        runs("spiral", 0, 2, 8)


@quietly
@given(batch=st.integers(1, 3), length=st.integers(1, 30), seed=st.integers(0, 5))
def test_documents_fill_their_sequences_and_are_the_same_for_every_seed(batch: int, length: int, seed: int) -> None:
    workload = Workload(batch_size=batch, sequence_length=length, seed=seed)
    found = documents(workload, packed=True)
    assert found == documents(workload.with_(seed=seed + 1), packed=True)
    ends = torch.tensor(found).cumsum(0).tolist()
    assert min(found) > 0
    assert set(range(length, batch * length + 1, length)) <= set(ends)


# Merging and exchanging, in one process


@quietly
@given(cuts=st.lists(st.integers(1, 9), min_size=1, max_size=5), order=st.randoms(use_true_random=False))
def test_blocks_merged_in_any_order_are_attention_over_all_of_them(cuts: list[int], order: Any) -> None:
    generator = torch.Generator().manual_seed(len(cuts))
    query, key, value = (
        10 * torch.randn(1, 2, n, 4, generator=generator, dtype=torch.float64) for n in (5, sum(cuts), sum(cuts))
    )
    parts = [attend(query, k, v, False) for k, v in zip(key.split(cuts, 2), value.split(cuts, 2), strict=True)]
    order.shuffle(parts)
    output, logsumexp = (x.clone() for x in parts[0])
    for further in parts[1:]:
        ring.merge(output, logsumexp, *further)
    torch.testing.assert_close(output, naive(query, key, value))


@quietly
@given(share=st.integers(1, 3), kv_heads=st.integers(1, 4), ranks=st.sampled_from([1, 2, 4]), n=st.integers(1, 3))
def test_an_exchange_gives_each_rank_the_key_heads_of_its_queries(
    share: int, kv_heads: int, ranks: int, n: int
) -> None:
    if kv_heads % ranks and ranks % kv_heads:
        with pytest.raises(Refused, match=f"{kv_heads} key heads and {ranks} ranks: neither number"):
            ulysses.head_shares(share * ranks * kv_heads, kv_heads, ranks)
        return
    heads = share * max(ranks, kv_heads)  # a multiple of both
    mine, mine_kv = ulysses.head_shares(heads, kv_heads, ranks)
    query = torch.arange(heads)[None, :, None, None].expand(2, heads, n * ranks, 1)
    key = torch.arange(kv_heads)[None, :, None, None].expand(2, kv_heads, n * ranks, 1)
    for rank in range(ranks):
        sent = [[ulysses.by_rank(part, ranks)[rank] for part in x.chunk(ranks, 2)] for x in (query, key)]
        q, k = (ulysses.whole_sequence(torch.stack(parts)) for parts in sent)
        assert q.shape == (2, mine, n * ranks, 1)
        assert k.shape == (2, mine_kv, n * ranks, 1)
        wanted = q // (heads // kv_heads)  # the key head of each query head
        assert torch.equal(k.repeat_interleave(mine // mine_kv, dim=1), wanted)


def test_query_heads_that_ranks_do_not_divide_are_refused() -> None:
    with pytest.raises(Refused, match="6 query heads cannot be distributed to 4 ranks"):
        ulysses.head_shares(6, 2, 4)


@pytest.mark.parametrize(
    ("topology", "group", "match"),
    [
        (Topology(dp=2, cp=2), 1, "over cp ranks only, not over dp2cp2"),
        (Topology(cp=4), 3, "groups of 3 ranks do not divide cp 4"),
    ],
)
def test_ranks_that_do_not_fit_are_refused(topology: Topology, group: int, match: str) -> None:
    with pytest.raises(Refused, match=match):
        Spread(Workload(), topology, "zigzag", group, packed=False)


@quietly
@given(
    layout=layouts,
    cp=st.sampled_from([1, 2, 4]),
    group=st.sampled_from([0, 1, 2]),
    length=st.integers(1, 20),
    packed=st.booleans(),
)
def test_parts_put_together_are_the_whole(layout: str, cp: int, group: int, length: int, packed: bool) -> None:
    workload = Workload(batch_size=2, sequence_length=length)
    if group > cp:
        return
    spread = Spread(workload, Topology(cp=cp), layout, group, packed)
    whole = torch.arange(2 * 3 * length * 2.0).view(2, 3, length, 2)
    parts = [spread.part(whole, rank) for rank in range(cp)]
    assert len({part.shape for part in parts}) == 1
    assert torch.equal(spread.whole(parts), whole)


@quietly
@given(layout=layouts, ranks=st.integers(1, 4), length=st.integers(1, 12), kv_heads=st.integers(1, 2))
def test_rows_of_gathered_attention_are_rows_of_the_whole(layout: str, ranks: int, length: int, kv_heads: int) -> None:
    size = padded(length, layout, ranks)
    generator = torch.Generator().manual_seed(size)
    query, key, value = (torch.randn(1, h, size, 4, generator=generator) for h in (2, kv_heads, kv_heads))
    exact = naive(query, key, value, Rules(causal=True))
    for mine in map(torch.tensor, on_ranks(layout, ranks, size)):
        torch.testing.assert_close(reference.naive(query[:, :, mine], key, value, mine), exact[:, :, mine])


# On ranks


@pytest.fixture(scope="module")
def worlds() -> Iterator[Callable[[int], World]]:
    launcher, open_worlds = LocalLauncher(), {}

    def of(size: int) -> World:
        if size not in open_worlds:
            open_worlds[size] = launcher.world(size, "reference", reference.__name__)
        return open_worlds[size]

    yield of
    for world in open_worlds.values():
        world.close()
    launcher.close()


def ran(world: World, workload: Workload, size: int, **variant: Any) -> tuple[Any, ...]:
    """Every rank's outcome of the reference's checked run, whether or not the workload permits the topology."""
    arguments = {
        "build": f"{reference.__name__}:build",
        "variant": variant,
        "workload": workload,
        "topology": Topology(cp=size),
        "problem": PROBLEM,
        "exact": (),
    }
    return world.run(Job("harness.launch.checked:function", arguments), 60.0)


def exactly(workload: Workload, narrow: bool, **variant: Any) -> dict[str, Tensor]:
    """The plain formula's output and gradients; ``narrow`` first rounds the inputs to float32."""
    drawn = Drawn.of(PROBLEM, workload.with_(dtype="fp32") if narrow else workload, variant)
    drawn = drawn.to(TORCH_DTYPES[workload.dtype])
    inputs, cotangents = drawn.inputs, drawn.cotangents
    outputs = problem.plain(inputs, **variant)
    leaves = {name: x for name, x in inputs.items() if x.requires_grad}
    found = torch.autograd.grad(outputs["output"], list(leaves.values()), cotangents["output"])
    return {"output": outputs["output"].detach(), **dict(zip(leaves, found, strict=True))}


def tensors(run: FunctionRun) -> dict[str, Tensor]:
    kept = {kind: torch.load(io.BytesIO(data)) for kind, data in (run.tensors or {}).items()}
    return {**kept["output"], **kept["gradient"]}


@settings(derandomize=True, max_examples=25)
@given(
    size=st.sampled_from([2, 4]),
    variant=st.sampled_from(sorted(CARD.variants)),
    length=st.integers(1, 19),
    share=st.integers(1, 2),
    kv_heads=st.sampled_from([1, 2, 4]),
    batch=st.integers(1, 2),
    seed=st.integers(0, 3),
)
def test_any_length_and_any_heads_give_attention_and_the_laws_bytes(
    worlds: Any, size: int, variant: str, length: int, share: int, kv_heads: int, batch: int, seed: int
) -> None:
    model = ModelConfig(num_attention_heads=4 * share, num_key_value_heads=kv_heads, head_dim=6)
    workload = Workload(model=model, batch_size=batch, sequence_length=length, dtype="fp64", seed=seed)
    options = dict(CARD.variants[variant])
    outcomes = ran(worlds(size), workload, size, **options)
    assert all(isinstance(outcome, Done) for outcome in outcomes), describe(outcomes)
    exact = exactly(workload, narrow=False, **options)
    found = tensors(outcomes[0].value)
    assert distance(found, exact) < distance(exactly(workload, narrow=True, **options), exact)
    for outcome in outcomes:
        sent = outcome.value.traffic[0].bytes + outcome.value.traffic[0].control
        assert sent == laws.traffic(workload, Topology(cp=size), **options)


def test_heads_that_cannot_be_dealt_out_are_a_reason_to_skip(worlds: Any) -> None:
    model = ModelConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=4)
    outcomes = ran(worlds(4), Workload(model=model, sequence_length=8, batch_size=1), 4, group=0)
    assert all(isinstance(outcome, Unsupported) for outcome in outcomes)
    assert "6 query heads cannot be distributed to 4 ranks" in outcomes[0].reason


# Laws


def test_the_laws_are_those_of_the_papers_where_every_head_has_its_own_keys() -> None:
    model = ModelConfig(num_attention_heads=4, num_key_value_heads=4, head_dim=8)
    workload, n, element = Workload(model=model, batch_size=1, sequence_length=64), 4, 4
    hidden = 4 * 8
    forth_and_back = 2 * element
    ulysses = 4 * 64 * hidden / n * (n - 1) / n  # 4·s·h/N, less the part that a rank keeps
    assert laws.traffic(workload, Topology(cp=n), group=0) == forth_and_back * ulysses
    ring = 2 * 64 * hidden * (n - 1) / n  # and the gradients besides
    assert laws.traffic(workload, Topology(cp=n)) == 1.5 * forth_and_back * ring
    narrow = workload.with_(dtype="bf16")
    assert laws.traffic(narrow, Topology(cp=n)) == (2 + 2 + 4) * ring  # gradients are summed in float32
    assert laws.saved(workload, Topology(cp=n)) == laws.saved(workload, Topology(cp=1)) / n


def test_only_the_rings_bytes_leave_a_group() -> None:
    workload, usp = Workload(sequence_length=64), {"layout": "zigzag", "group": 2}
    assert laws.across_groups(workload, Topology(cp=2), **usp) == 0
    across, every = (law(workload, Topology(cp=4), **usp) for law in (laws.across_groups, laws.traffic))
    assert 0 < across < every
    assert laws.across_groups(workload, Topology(cp=4)) == laws.traffic(workload, Topology(cp=4))


# The stand-in for flash-attn


def test_the_stand_in_computes_packed_documents_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v, d_o = (torch.randn(9, h, 4, generator=generator) for h in (4, 2, 2, 4))
    starts = torch.tensor([0, 2, 9], dtype=torch.int32)
    options = {"dropout_p": 0.0, "softmax_scale": 0.5, "causal": True}
    spans = (starts, starts, 7, 7)
    out, logsumexp, *_ = flash_attn_on_cpu._varlen_forward(q, k, v, *spans, **options)
    buffers = [torch.empty_like(x) for x in (q, k, v)]
    flash_attn_on_cpu._varlen_backward(d_o, q, k, v, out, logsumexp, *buffers, *spans, **options)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    inputs = {name: x.transpose(0, 1)[None] for name, x in zip(("query", "key", "value"), leaves, strict=True)} | {
        "cu_seqlens": starts
    }
    exact = problem.plain(inputs)["output"][0].transpose(0, 1)
    torch.testing.assert_close(out, exact)
    for found, wanted in zip(buffers, torch.autograd.grad(exact, leaves, d_o), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "option", [{"dropout_p": 0.1}, {"softmax_scale": 1.0}, {"window_size_left": 3}, {"softcap": 1.0}]
)
def test_the_stand_in_refuses_what_it_does_not_compute(option: dict[str, float]) -> None:
    q = torch.zeros(1, 2, 1, 4)
    with pytest.raises(ValueError, match=r"the stand-in for flash-attn takes a scale of 0\.5, no dropout"):
        flash_attn_on_cpu._forward(q, q, q, **{"dropout_p": 0.0, "softmax_scale": 0.5, "causal": True, **option})


def test_the_stand_in_is_gone_afterwards() -> None:
    before = "flash_attn" in sys.modules
    with flash_attn_on_cpu.stand_in() as fallback:
        assert not fallback or sys.modules["flash_attn"].flash_attn_interface._flash_attn_forward
    assert ("flash_attn" in sys.modules) == before
