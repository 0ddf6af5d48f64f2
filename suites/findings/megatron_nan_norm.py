"""Megatron-Core does not clip at all in a step whose gradient norm is NaN.

A user clips gradients, and one batch gives one weight a NaN gradient. The norm of all gradients is NaN, but the other
weights are updated by their whole gradients, however large, without an error or a warning.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import nn

CLIP, SIZE = 1.0, 30.0


def step(factor: float) -> tuple[float, float]:
    """The norm, and the size of the first weight's update, where the gradients are SIZE and ``factor``."""
    config = TransformerConfig(num_layers=1, hidden_size=1, num_attention_heads=1)
    weights = nn.ParameterList([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))])
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), weights)
    sgd = OptimizerConfig(optimizer="sgd", lr=1.0, weight_decay=0.0, sgd_momentum=0.0, clip_grad=CLIP)
    optimizer = get_megatron_optimizer(sgd, [model], use_gloo_process_groups=False)
    (SIZE * weights[0] + factor * weights[1]).sum().backward()
    finalize_model_grads([model])
    _, norm, _ = optimizer.step()
    return norm, weights[0].abs().item()


def main() -> bool:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    # Its optimizer has scalars on "cuda" and asserts that gradients are there.
    tensor, zeros, kind = torch.tensor, torch.zeros, torch.Tensor.type
    torch.tensor = lambda *data, device=None, **options: tensor(*data, **options)
    torch.zeros = lambda *shape, device=None, **options: zeros(*shape, **options)
    torch.Tensor.type = lambda tensor, *to: kind(tensor, *to) if to else "torch.cuda.FloatTensor"
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
        norm, clipped = step(40.0)
        unknown, found = step(torch.nan)
        dist.destroy_process_group()
    print(f"expected an update of at most {CLIP} or of NaN, or none (with a finite norm of {norm}: {clipped:.4f})")
    print(f"found    an update of {found} with a norm of {unknown}")
    if not 0 < clipped <= CLIP:
        raise RuntimeError("the control, a finite norm, is not clipped either")
    return found > CLIP


if __name__ == "__main__":
    wrong = main()
    print("still there" if wrong else "gone")
    sys.exit(wrong)
