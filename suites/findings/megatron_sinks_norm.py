"""Megatron-Core leaves attention sinks out of the gradient norm on all tensor-parallel ranks but the first.

A user clips gradients at TP 2 with `softmax_type="learnable"`. The sinks are divided over the ranks but not marked as
such, so the norm takes those of rank 1 for copies, and clipping lets larger steps through.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.dot_product_attention import DotProductAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.transformer_config import TransformerConfig


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    tensor, zeros, kind = torch.tensor, torch.zeros, torch.Tensor.type  # its optimizer has scalars on "cuda"
    torch.tensor = lambda *data, device=None, **options: tensor(*data, **options)
    torch.zeros = lambda *shape, device=None, **options: zeros(*shape, **options)
    torch.Tensor.type = lambda tensor, *to: kind(tensor, *to) if to else "torch.cuda.FloatTensor"
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=4, tensor_model_parallel_size=2,
        softmax_type="learnable", perform_initialization=False, attention_dropout=0.0,
    )  # fmt: skip
    torch.manual_seed(1)
    query, key, value, weight = (torch.randn(6, 2, 4, 4).chunk(2, dim=2)[rank].contiguous() for _ in range(4))
    attention = DotProductAttention(config, 1, AttnMaskType.causal, "self")
    attention.softmax_offset.data = (before := torch.randn(4).chunk(2)[rank].clone()).clone()
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), attention)
    sgd = OptimizerConfig(optimizer="sgd", lr=1.0, weight_decay=0.0, sgd_momentum=0.0, clip_grad=0.01)
    optimizer = get_megatron_optimizer(sgd, [model], use_gloo_process_groups=False)
    future = torch.ones(1, 1, 6, 6, dtype=torch.bool).triu(1)  # 6 positions, 2 sequences, 4 heads of width 4
    (attention(query, key, value, future) * weight.flatten(2)).sum().backward()
    finalize_model_grads([model])
    gradient, (_, norm, _) = attention.softmax_offset.main_grad.clone(), optimizer.step()
    torch.save((gradient, norm, before - attention.softmax_offset.detach()), f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        (gradient, found, step), (other_gradient, _, other_step) = (torch.load(f"{folder}/{rank}") for rank in (0, 1))
    expected, step = (torch.cat(parts).norm().item() for parts in ((gradient, other_gradient), (step, other_step)))
    print(f"expected norm {expected:.6f} (gradients of all 4 sinks), step 0.010000 (clipped SGD, rate 1)")
    off = abs(found - expected) / expected
    print(f"found    norm {found:.6f}: relative difference {off:.1e}; step {step:.6f}")
    wrong = not off <= 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
