"""Megatron-Core's batched messages confuse activations and gradients with two pipeline ranks.

A user runs the interleaved schedule on two pipeline ranks with the library's defaults (`batch_p2p_comm=True`). Both
neighbours are the same rank, and messages are matched by their order alone: both ranks send backward first and receive
from the previous rank first.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from megatron.core.model_parallel_config import ModelParallelConfig
from megatron.core.pipeline_parallel.p2p_communication import P2PCommunicator

ACTIVATION, GRADIENT = 1.0, -1.0


def exchange(batched: bool) -> tuple[float, float]:
    config = ModelParallelConfig(
        pipeline_model_parallel_size=2, virtual_pipeline_model_parallel_size=2, pipeline_dtype=torch.float32,
        batch_p2p_comm=batched,
    )  # fmt: skip
    pipeline = P2PCommunicator(dist.new_group([0, 1]), config)
    # In the steady state of the interleaved schedule each rank has one of each to send, and one of each to receive.
    activation, gradient = pipeline.send_forward_backward_recv_forward_backward(
        torch.full((4,), ACTIVATION), torch.full((4,), GRADIENT), recv_prev=True, recv_next=True, tensor_shape=(4,)
    )
    return activation[0].item(), gradient[0].item()


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where it receives
    torch.cuda.synchronize = lambda: None
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([exchange(batched) for batched in (False, True)], f"{folder}/{rank}")
    dist.barrier()


def main() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder,), nprocs=2, start_method="fork")
        (single, batched) = torch.load(f"{folder}/0")
    print(f"expected activation {ACTIVATION}, gradient {GRADIENT} (without batch_p2p_comm {single[0]}, {single[1]})")
    print(f"found    activation {batched[0]}, gradient {batched[1]} (batch_p2p_comm)")
    if single != (ACTIVATION, GRADIENT):
        raise RuntimeError("single messages are confused too")
    return batched != single


if __name__ == "__main__":
    wrong = main()
    print("still there" if wrong else "gone")
    sys.exit(wrong)
