"""Megatron-Core halves a router's auxiliary and z losses at CP 2 with per-token loss.

A user trains experts with `calculate_per_token_loss`. A rank's share of the losses has 1/2 in it already; the router
multiplies it by the rank's own tokens, and finalize_model_grads() divides the sum by all ranks' tokens.
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
AUX, Z = {"moe_aux_loss_coeff": 0.1}, {"moe_router_load_balancing_type": "none", "moe_z_loss_coeff": 0.1}


def gradient(per_token: bool, settings: dict) -> torch.Tensor:
    config = TransformerConfig(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=2, num_moe_experts=EXPERTS, add_bias_linear=False,
        context_parallel_size=2, perform_initialization=False, calculate_per_token_loss=per_token, **settings,
    )  # fmt: skip
    torch.manual_seed(3)
    x = torch.randn(TOKENS, 1, HIDDEN).chunk(2)[dist.get_rank()]  # of one sequence
    router = TopKRouter(config, ProcessGroupCollection.use_mpu_process_groups())
    router.weight.data = torch.randn(EXPERTS, HIDDEN)
    router.set_layer_number(1)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), router)
    moe_utils.MoEAuxLossAutoScaler.set_loss_scale(torch.tensor(1.0 if per_token else 2.0))  # as the schedules set it
    (0 * model(x)[0].sum()).backward()  # the losses that the router adds are all that has a gradient
    finalize_model_grads([model], torch.tensor(TOKENS // 2) if per_token else None)
    return router.weight.main_grad.clone()


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    moe_utils.te_general_gemm = None  # it is read, but not defined, without Transformer Engine
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(context_parallel_size=2, create_gloo_process_groups=False)
    torch.save([gradient(per_token, loss) for loss in (AUX, Z) for per_token in (False, True)], f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        aux, aux_per_token, z, z_per_token = torch.load(f"{folder}/0")
    # One sequence in one micro-batch: a mean over the tokens and a mean over the samples are the same.
    print(f"expected norm of the router's gradient, without per-token loss: aux {aux.norm():.6f}, z {z.norm():.6f}")
    print(f"found    with per-token loss: aux {aux_per_token.norm():.6f}, z {z_per_token.norm():.6f}")
    off_aux, off_z = ((aux_per_token - aux).norm() / aux.norm()).item(), ((z_per_token - z).norm() / z.norm()).item()
    print(f"relative difference: aux {off_aux:.1e}, z {off_z:.1e}")
    wrong = not (off_aux <= 1e-3 and off_z <= 1e-3)
    print("still there" if wrong else "gone")
    sys.exit(wrong)
