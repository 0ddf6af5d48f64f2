"""Megatron-Core does not reduce experts' gradients if expert TP is unlike TP and EP is 1.

A user trains a mixture of experts with TP 2, sequence parallelism and `expert_tensor_parallel_size=1`. Both ranks hold
whole experts and see half of the tokens each, but the experts are marked as dense weights, which TP ranks do not share.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt.moe_module_specs import get_moe_module_spec
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.moe_layer import MoELayer
from megatron.core.transformer.transformer_config import TransformerConfig


def gradients(tp: int) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = {"tensor_model_parallel_size": tp, "expert_tensor_parallel_size": 1}
    parallel_state.initialize_model_parallel(**sizes, create_gloo_process_groups=False)
    torch.manual_seed(0)  # the same weights and tokens for each size
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=4, num_moe_experts=4, add_bias_linear=False,
        sequence_parallel=tp > 1, use_cpu_initialization=True, init_method_std=0.3,
        moe_router_load_balancing_type="none", **sizes,
    )  # fmt: skip
    layer = MoELayer(config, get_moe_module_spec(False, 4, False).submodules, layer_number=1)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), layer)
    x, target = torch.randn(2, 8, 1, 16).chunk(tp, dim=1)[parallel_state.get_tensor_model_parallel_rank()]
    (model(x)[0] * target).sum().backward()
    finalize_model_grads([model])
    parallel_state.destroy_model_parallel()
    return torch.cat([p.main_grad.flatten() for p in layer.experts.parameters()]), layer.router.weight.main_grad.clone()


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    moe_utils.te_general_gemm = None  # it is read, but not defined, without Transformer Engine
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([gradients(tp) for tp in (1, 2)], f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        ((expected, router), (found, same)), (_, (other, _)) = (torch.load(f"{folder}/{rank}") for rank in (0, 1))
    off = (found - expected).norm() / expected.norm()
    print(f"expected norm of the experts' gradients {expected.norm():.6f} on both ranks (TP 1)")
    print(f"found    {found.norm():.6f} and {other.norm():.6f} (TP 2): relative difference {off:.1e}")
    if (same - router).norm() > 1e-3 * router.norm():
        raise RuntimeError("the router's gradient is not that of TP 1 either")
    wrong = not off.item() <= 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
