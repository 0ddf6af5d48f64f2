"""What this machine can do at best: products, copies, and collectives of the ranks of a world."""

import time
from collections.abc import Callable

import torch
import torch.distributed as dist

from harness.meter.flops import matmul_ceiling
from harness.spec.run import Ceilings

SMALL, LARGE = 2**8, 2**20  # elements of float32 a rank
TURNS = 5


def ceilings(dtype: str) -> Ceilings:
    """Measured now; all ranks call this together."""
    return Ceilings(matmul_ceiling(dtype), copy_bandwidth(), collectives() if dist.get_world_size() > 1 else {})


def copy_bandwidth() -> float:
    """Bytes/s that the fastest of a few copies reads and writes."""
    cuda = torch.cuda.is_available()
    source = torch.zeros(2**28 if cuda else 2**23, device="cuda" if cuda else "cpu")
    target = torch.empty_like(source)
    return 2 * source.nbytes / min(_seconds(lambda: target.copy_(source)) for _ in range(TURNS))


def collectives() -> dict[str, tuple[float, float]]:
    """The latency of each collective of all ranks, and the bytes/s that a rank sends (as the traffic meter counts)."""
    size, rank = dist.get_world_size(), dist.get_rank()
    ring = {"all_reduce": 2 * (size - 1) / size, "all_gather": size - 1, "reduce_scatter": size - 1}
    sent = {**ring, "all_to_all": (size - 1) / size, "broadcast": (size - 1) / size, "send": 1.0}
    device = "cuda" if torch.cuda.is_available() and dist.get_backend() != "gloo" else "cpu"

    def call(name: str, n: int) -> Callable[[], object]:
        mine, other = torch.zeros(n, device=device), torch.zeros(n, device=device)
        if name == "all_reduce":
            return lambda: dist.all_reduce(mine)
        if name == "broadcast":
            return lambda: dist.broadcast(mine, 0)
        if name == "all_to_all":
            return lambda: dist.all_to_all_single(other, mine)
        if name == "send":
            ops = [
                dist.P2POp(dist.isend, mine, (rank + 1) % size),
                dist.P2POp(dist.irecv, other, (rank - 1) % size),
            ]
            return lambda: [work.wait() for work in dist.batch_isend_irecv(ops)]
        whole = torch.zeros(n * size, device=device)
        if name == "all_gather":
            return lambda: dist.all_gather_into_tensor(whole, mine)
        return lambda: dist.reduce_scatter_tensor(mine, whole)

    found = {}
    for name, share in sent.items():
        small, large = (min(_seconds(call(name, n)) for _ in range(TURNS)) for n in (SMALL, LARGE))
        found[name] = small, share * LARGE * 4 / max(large - small, 1e-9)
    return found


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start
