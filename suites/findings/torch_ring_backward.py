"""The backward of PyTorch's ring attention sends the keys' and values' gradients once too often.

A user trains with context parallelism over N ranks. Gradients of a block of keys and values start on the rank that
holds the block and go round the whole ring, N hops; when the owner adds its own share last, N - 1 hops do.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch.distributed.tensor.debug import CommDebugMode
from torch.distributed.tensor.experimental._context_parallel import _attention as ring

RANKS = 3
# context_parallel() itself registers only CUDA's kernels: on a CPU, its templates receive the CPU's.
FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def data():
    torch.manual_seed(0)
    return [torch.randn(1, 2, 4 * RANKS, 8, requires_grad=True) for _ in range(4)]  # q, k, v and the output's gradient


def rank_main(rank, store, hops, off):
    dist.init_process_group("gloo", init_method=f"file://{store}/ranks", rank=rank, world_size=RANKS)
    q, k, v, upstream = data()
    F.scaled_dot_product_attention(q, k, v).backward(upstream)
    dense = [t.grad.chunk(RANKS, 2)[rank] for t in (q, k, v)]
    q, k, v, upstream = (t.detach().chunk(RANKS, 2)[rank].contiguous() for t in data())
    ring._cp_options.enable_load_balance = False  # blocks in their order, no causal mask: the plainest ring
    group, options = dist.group.WORLD, {"is_causal": False, "dropout_p": 0.0}
    saved = (q, k, v, *ring._templated_ring_attention(group, 2, FORWARD, q, k, v, **options))
    with CommDebugMode() as sent:
        grads = ring._templated_ring_attention_backward(group, 2, BACKWARD, upstream, "grad_out", *saved, **options)
    # The keys and values themselves are all-gathered; all-to-alls carry their gradients alone.
    hops[rank] = sent.get_comm_counts()[torch.ops.c10d_functional.all_to_all_single]
    off[rank] = max((g - d).norm() / d.norm() for g, d in zip(grads[:3], dense, strict=True))
    dist.destroy_process_group()


def main():
    hops, off = torch.zeros(RANKS, dtype=torch.int64).share_memory_(), torch.zeros(RANKS).share_memory_()
    with tempfile.TemporaryDirectory() as store:
        mp.start_processes(rank_main, (store, hops, off), nprocs=RANKS, start_method="fork")
    found = hops.max().item()
    print(f"expected {RANKS - 1} hops of dK and dV round {RANKS} ranks")
    print(f"found    {found}; the gradients are dense attention's (off by {off.max():.1e})")
    if off.max() > 1e-3 or found < RANKS - 1:
        raise RuntimeError("the gradients are wrong, or their hops are not all-to-alls any more")
    return found > RANKS - 1


if __name__ == "__main__":
    wrong = main()
    print("still there" if wrong else "gone")
    sys.exit(wrong)
