"""Megatron-Core does not sum the gradient of GatedDeltaNet's output norm over tensor-parallel ranks.

A user trains GatedDeltaNet at TP 2. Both ranks hold all of `out_norm`, but each keeps the gradient of its own heads.
"""

import sys
import tempfile

import megatron.core.ssm.gated_delta_net as gdn
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_config import TransformerConfig


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    # FLA's other kernels are not needed: deterministic_mode takes Megatron-Core's own recurrence.
    gdn.HAVE_FLA, gdn.l2norm = True, lambda x: x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)
    torch.compiler.set_stance("force_eager")  # else compiling takes most of the time
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=4, tensor_model_parallel_size=2,
        use_cpu_initialization=True, init_method_std=0.4, normalization="RMSNorm", add_bias_linear=False,
        activation_func=torch.nn.functional.silu, deterministic_mode=True, linear_key_head_dim=4,
        linear_value_head_dim=4, linear_num_key_heads=4, linear_num_value_heads=4,
    )  # fmt: skip
    parts = gdn.GatedDeltaNetSubmodules(ColumnParallelLinear, WrappedTorchNorm, RowParallelLinear)
    layer = gdn.GatedDeltaNet(config, parts, 1, pg_collection=ProcessGroupCollection.use_mpu_process_groups())
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), layer)
    x, target = torch.randn(2, 8, 1, 16)
    (model(x, None)[0] * target).sum().backward()
    finalize_model_grads([model])
    weight, expected = layer.out_norm.weight, torch.zeros(4)
    for i, unit in enumerate(torch.eye(4)):  # the loss is linear in it: its value at a unit vector is a derivative
        weight.data.copy_(unit)
        expected[i] = (model(x, None)[0] * target).sum().detach()
    torch.save((expected, weight.main_grad.clone()), f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        (expected, found), (_, other) = (torch.load(f"{folder}/{rank}") for rank in (0, 1))
    print(f"expected gradient of out_norm, norm {expected.norm():.6f}, on both ranks (the loss at unit vectors)")
    off = ((found - expected).norm() / expected.norm()).item()
    print(f"found    {found.norm():.6f} and {other.norm():.6f}: relative difference {off:.1e}")
    wrong = not off <= 1e-3
    assert not wrong or 100 * (found + other - expected).norm() < (found - expected).norm(), "the sum is no better"
    print("still there" if wrong else "gone")
    sys.exit(wrong)
