"""Jobs that the meters measure, inside a rank."""

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from harness.launch import widened
from harness.launch.rank import Context
from harness.meter import memory
from harness.meter.backward import FirstBackward
from harness.meter.traffic import CONTROL, Traffic
from harness.spec import ModelConfig, Workload
from impls.common.activations import saved
from impls.common.data import batch
from impls.common.weights import build_model

N = 1000  # elements of 4 bytes
PIECE = 2**20  # bytes


def piece(pieces: int = 1) -> Tensor:
    return torch.empty(pieces * PIECE, dtype=torch.uint8)


def held_and_peak(context: Context | None = None) -> dict[str, Any]:
    """Megabytes after each of a few allocations and releases."""
    with memory.gauge() as gauge:
        first = piece(2)
        figures: dict[str, Any] = {"one tensor": gauge.current()}
        _ = first.view(2, -1).t()
        figures["and a view"] = gauge.current()
        second = first.clone()
        figures["and a copy"] = gauge.current()
        del first, _
        figures["without the first"] = gauge.current()
        figures["peak"] = gauge.peak()
        gauge.reset()
        figures["peak after reset"] = gauge.peak()
        third = piece(3)
        del third
        figures["peak of a temporary"] = gauge.peak()
        second.untyped_storage().resize_(0)
    with memory.gauge() as gauge:
        _ = piece()
        figures["from a new start"] = gauge.current()
    return {name: size / PIECE for name, size in figures.items()} | {"meter": memory.meter()}


def widened_product(context: Context | None = None) -> dict[str, int]:
    """Final and largest bytes of a bfloat16 product that is computed in float32."""
    library = widened.install()
    left, right = torch.ones(300, 200, dtype=torch.bfloat16), torch.ones(200, 100, dtype=torch.bfloat16)
    with memory.gauge() as gauge:
        gauge.reset()
        product = left @ right
        figures = {"held": gauge.current(), "peak": gauge.peak(), "bytes": product.nbytes}
    del library
    return figures


def training(context: Context | None = None) -> dict[str, int]:
    """Bytes of a training step's states and peak, large enough to make kernels' own workspaces negligible."""
    with memory.gauge() as gauge:
        model = nn.Sequential(nn.Linear(512, 512, bias=False), nn.ReLU(), nn.Linear(512, 512, bias=False))
        optimizer = torch.optim.AdamW(model.parameters(), fused=True)
        batch = torch.randn(256, 512)
        for _ in range(3):
            gauge.reset()
            model(batch).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return {"states": gauge.current(), "peak": gauge.peak()}


def ones(size: int = N) -> Tensor:
    return torch.ones(size)


def collectives(context: Context) -> dict[str, dict[str, dict[str, float]] | str]:
    """The traffic meter's count on this rank for each form of each collective, or the reason why a form is missing."""
    rank, other, world = context.rank, 1 - context.rank, dist.group.WORLD
    alone = [dist.new_group([peer]) for peer in range(context.size)][rank]
    # 0 keeps 100 and sends 900, 1 sends 300 and keeps 700.
    splits = [[100, 900], [300, 700]]
    mine, theirs = splits[rank], [part[rank] for part in splits]

    def coalesced(*calls: Callable[[], Any]) -> None:
        with dist._coalescing_manager():
            for call in calls:
                call()

    def swap() -> None:
        for work in dist.batch_isend_irecv(
            [dist.P2POp(dist.isend, ones(), other), dist.P2POp(dist.irecv, ones(), other)]
        ):
            work.wait()

    asked: dict[str, Callable[[], Any]] = {
        "all_reduce": lambda: dist.all_reduce(ones()),
        "all_reduce async": lambda: dist.all_reduce(ones(), async_op=True).wait(),
        "all_reduce coalesced": lambda: coalesced(lambda: dist.all_reduce(x), lambda: dist.all_reduce(y)),
        "all_reduce alone": lambda: dist.all_reduce(ones(), group=alone),
        "all_reduce small": lambda: dist.all_reduce(ones(CONTROL // 4)),
        "all_gather": lambda: dist.all_gather([ones(), ones()], ones()),
        "all_gather flat": lambda: dist.all_gather_into_tensor(ones(2 * N), ones()),
        "all_gather flat async": lambda: dist.all_gather_into_tensor(ones(2 * N), ones(), async_op=True).wait(),
        "all_gather coalesced": lambda: coalesced(
            lambda: dist.all_gather_into_tensor(ones(2 * N), ones()),
            lambda: dist.all_gather_into_tensor(ones(2 * N), ones()),
        ),
        "reduce_scatter": lambda: dist.reduce_scatter(ones(), [ones(), ones()]),
        "reduce_scatter flat": lambda: dist.reduce_scatter_tensor(ones(), ones(2 * N)),
        "reduce_scatter coalesced": lambda: coalesced(
            lambda: dist.reduce_scatter_tensor(ones(), ones(2 * N)),
            lambda: dist.reduce_scatter_tensor(ones(), ones(2 * N)),
        ),
        "all_to_all": lambda: dist.all_to_all([ones(N // 2), ones(N // 2)], [ones(N // 2), ones(N // 2)]),
        "all_to_all flat": lambda: dist.all_to_all_single(ones(), ones()),
        "all_to_all uneven": lambda: dist.all_to_all_single(ones(sum(theirs)), ones(), theirs, mine),
        "all_to_all one way": lambda: dist.all_to_all_single(
            ones(N * rank), ones(N * (1 - rank)), [N * rank, 0], [0, N * (1 - rank)]
        ),
        "broadcast": lambda: dist.broadcast(ones(), 0),
        "reduce": lambda: dist.reduce(ones(), 0),
        "gather": lambda: dist.gather(ones(), None if rank else [ones(), ones()], 0),
        "scatter": lambda: dist.scatter(ones(), None if rank else [ones(), ones()], 0),
        "send": lambda: dist.recv(ones(), 0) if rank else dist.send(ones(), 1),
        "send batched": swap,
        "barrier": dist.barrier,
        "functional all_reduce": lambda: functional.all_reduce(ones(), "sum", world).sum(),
        "functional average": lambda: functional.all_reduce(ones(), "avg", world).sum(),
        "functional all_reduce coalesced": lambda: functional.all_reduce_coalesced([ones(), ones()], "sum", world)[
            0
        ].sum(),
        "functional all_gather": lambda: functional.all_gather_tensor(ones(), 0, world).sum(),
        "functional reduce_scatter": lambda: functional.reduce_scatter_tensor(ones(2 * N), "sum", 0, world).sum(),
        "functional all_to_all": lambda: functional.all_to_all_single(ones(), None, None, world).sum(),
        "functional all_to_all uneven": lambda: functional.all_to_all_single(ones(), theirs, mine, world).sum(),
        "functional broadcast": lambda: functional.broadcast(ones(), 0, world).sum(),
        "functional all_gather and back": lambda: (
            functional.all_gather_tensor_autograd(ones().requires_grad_(), 0, world).square().sum().backward()
        ),
    }
    x, y = ones(), ones()
    found: dict[str, dict[str, dict[str, float]] | str] = {}
    for name, call in asked.items():
        try:
            with Traffic() as traffic:
                call()
        except RuntimeError as error:
            if "does not support" not in str(error):  # gloo supports the list all-to-all only since PyTorch 2.12
                raise
            found[name] = str(error)
        else:
            found[name] = traffic.by_op
    return found


def groups(context: Context) -> dict[tuple[int, ...], float]:
    """Bytes by the ranks that take part, for four ranks in two pairs."""
    pairs = [dist.new_group(pair) for pair in ([0, 1], [2, 3])]
    with Traffic() as traffic:
        dist.all_reduce(ones(), group=pairs[context.rank // 2])
        dist.all_gather_into_tensor(ones(4 * N), ones())
        dist.all_reduce(ones(1))  # control
        if context.rank == 1:
            dist.send(ones(), 3)
        if context.rank == 3:
            dist.recv(ones(), 1)
    return traffic.by_group


def ddp(context: Context) -> dict[str, Any]:
    """A step of DDP, and the number of its model's elements."""
    model = DistributedDataParallel(nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10)))
    return _step(model)


def fsdp(context: Context) -> dict[str, Any]:
    """A step of FSDP2 whose root keeps its weights between forward and backward pass; the layers' sizes are
    separate."""
    model = nn.Sequential(nn.Linear(100, 100), nn.Linear(100, 10))
    fully_shard(model[0], reshard_after_forward=True)
    fully_shard(model, reshard_after_forward=False)
    return _step(model)


def _step(model: nn.Module) -> dict[str, Any]:
    sizes = [p.numel() for p in model.parameters()]
    for _ in range(3):  # the first steps exchange sizes and lay out buckets
        with Traffic() as traffic:
            model(torch.ones(4, 100)).sum().backward()
    return {"sizes": sizes, "by_op": traffic.by_op}


def kept_by_decoders(context: Context, tied: bool = False) -> dict[str, tuple[int, float]]:
    """By precision, the bytes that a decoder keeps for its backward pass, and the formula's bytes."""
    found = {}
    for dtype in ("fp64", "fp32", "bf16"):
        work = Workload(dtype=dtype, sequence_length=31)
        if tied:
            work = work.with_(model=ModelConfig(tie_word_embeddings=True, num_hidden_layers=2, hidden_size=96))
        if widened.needed(dtype):
            widened.install()
        model, tokens = build_model(work), batch(work, 0)
        model(*tokens).backward()  # gradients exist from now on
        with memory.gauge() as gauge, FirstBackward(gauge.current) as first:
            model(*tokens).backward()
        assert first.noted is not None
        found[dtype] = first.noted, saved(work, work.tokens)
    return found


def kept_by_tied_decoders(context: Context) -> dict[str, tuple[int, float]]:
    return kept_by_decoders(context, tied=True)


class Hoarder(torch.autograd.Function):
    """It keeps a tensor as an attribute, which hooks on saved tensors do not see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = piece()
        return x.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.expand(4)


def kept_in_a_context(context: Context) -> int | None:
    x = torch.ones(4, requires_grad=True)
    with memory.gauge() as gauge, FirstBackward(gauge.current) as first:
        loss = Hoarder.apply(x)
        loss.backward()
    return None if first.noted is None else first.noted - 2 * loss.nbytes  # and its gradient
