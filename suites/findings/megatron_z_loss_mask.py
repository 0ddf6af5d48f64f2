"""Megatron-Core's router z loss with a padding mask is a mean of means at TP 2 with sequence parallelism.

A user gives a mixture of experts a `padding_mask` that leaves 4 tokens in one half of the sequence and 1 in the other.
Each rank divides its z loss by its own valid tokens and by 2, so a token's weight depends on its rank.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

EVEN = torch.tensor([0, 0, 0, 1, 0, 0, 0, 1], dtype=torch.bool)  # 1: padding; 3 tokens in each half
UNEVEN = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1], dtype=torch.bool)  # 4 tokens and 1


def gradients(padding: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=2, num_moe_experts=4, add_bias_linear=False,
        tensor_model_parallel_size=2, sequence_parallel=True, perform_initialization=False,
        moe_router_load_balancing_type="none", moe_z_loss_coeff=0.1,
    )  # fmt: skip
    torch.manual_seed(3)
    x, weight = torch.randn(8, 16), torch.randn(4, 16, requires_grad=True)
    router = TopKRouter(config, ProcessGroupCollection.use_mpu_process_groups())
    router.weight.data = weight.detach().clone()
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), router)
    mine, mask = (t.unsqueeze(1).chunk(2)[dist.get_rank()] for t in (x, padding))
    (0 * model(mine, mask)[0].sum()).backward()  # the z loss that the router adds is all that has a gradient
    finalize_model_grads([model])
    (0.1 * (x @ weight.T)[~padding].logsumexp(-1).square().mean()).backward()
    return weight.grad, router.weight.main_grad.clone()


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    moe_utils.te_general_gemm = None  # it is read, but not defined, without Transformer Engine
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    torch.save([gradients(padding) for padding in (EVEN, UNEVEN)], f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        (right, even), (expected, found) = torch.load(f"{folder}/0")
    off, off_even = ((found - expected).norm() / expected.norm()).item(), ((even - right).norm() / right.norm()).item()
    print(f"expected norm of the router's gradient {expected.norm():.6f} (dense, mean over 5 tokens)")
    print(f"found    {found.norm():.6f}: relative difference {off:.1e} (with 3 tokens on each rank {off_even:.1e})")
    assert off_even <= 1e-3, "shards of equal padding are wrong too"
    wrong = not off <= 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
