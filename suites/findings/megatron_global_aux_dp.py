"""Megatron-Core divides `global_aux_loss` by the number of data-parallel ranks once too often.

A user balances experts over the global batch. The loss of a rank's tokens is divided by the square of the number of all
ranks' tokens, and DDP averages the gradients over the ranks again.
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

TOKENS, HIDDEN, EXPERTS = 8, 16, 4


def gradient(loss: str) -> torch.Tensor:
    config = TransformerConfig(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=2, num_moe_experts=EXPERTS, add_bias_linear=False,
        perform_initialization=False, moe_router_load_balancing_type=loss, moe_aux_loss_coeff=0.1,
    )  # fmt: skip
    torch.manual_seed(3)
    x = torch.randn(TOKENS, 1, HIDDEN)  # every rank has the same tokens
    router = TopKRouter(config, ProcessGroupCollection.use_mpu_process_groups())
    router.weight.data = torch.randn(EXPERTS, HIDDEN)
    router.set_layer_number(1)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), router)
    (0 * model(x)[0].sum()).backward()  # the loss that the router adds is all that has a gradient
    finalize_model_grads([model])
    return router.weight.main_grad.clone()


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    moe_utils.te_general_gemm = None  # it is read, but not defined, without Transformer Engine
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)  # the ranks are data-parallel
    torch.save([gradient(loss) for loss in ("aux_loss", "global_aux_loss")], f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        expected, found = torch.load(f"{folder}/0")
    # Each rank's tokens are balanced as the global batch is, so both losses are the same.
    print(f"expected norm of the router's gradient {expected.norm():.6f} (aux_loss, 2 ranks with the same tokens)")
    off = ((found - expected).norm() / expected.norm()).item()
    print(f"found    {found.norm():.6f} (global_aux_loss): relative difference {off:.1e}")
    wrong = not off <= 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
