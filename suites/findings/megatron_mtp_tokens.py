"""Megatron-Core's multi-token prediction is not a mean over its tokens if the loss is per token.

A user sets `mtp_num_layers=1` and `calculate_per_token_loss`. MTP's loss is a sum over the tokens that are left when
the labels are shifted once more, but finalize_model_grads() divides it by the tokens of the main loss.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_mtp_block_spec
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.transformer_config import TransformerConfig

LENGTH, VOCABULARY = 4, 16


def gradient(per_token: bool) -> torch.Tensor:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=4, use_cpu_initialization=True, init_method_std=0.2,
        attention_dropout=0.0, hidden_dropout=0.0, mtp_num_layers=1, mtp_loss_scaling_factor=1.0,
        calculate_per_token_loss=per_token,
    )  # fmt: skip
    layer = get_gpt_layer_local_spec()
    mtp = get_gpt_mtp_block_spec(config, layer, use_transformer_engine=False)
    gpt = GPTModel(config, layer, VOCABULARY, LENGTH, mtp_block_spec=mtp, position_embedding_type="rope")
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), gpt)
    tokens, mask = torch.randint(VOCABULARY, (1, LENGTH + 1)), torch.ones(1, LENGTH)
    positions, future = torch.arange(LENGTH)[None], torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    losses = model(tokens[:, :-1], positions, future, labels=tokens[:, 1:], loss_mask=mask)
    (losses.sum() if per_token else losses.mean()).backward()
    finalize_model_grads([model], torch.tensor(LENGTH) if per_token else None)
    return torch.cat([p.main_grad.flatten() for name, p in gpt.named_parameters() if name.startswith("mtp.")])


if __name__ == "__main__":
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    torch.compiler.set_stance("force_eager")  # else compiling takes most of the time
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
        expected, found = gradient(per_token=False), gradient(per_token=True)
        dist.destroy_process_group()
    off = ((found - expected).norm() / expected.norm()).item()
    print(f"expected norm of MTP's gradients {expected.norm():.6f} ({LENGTH} tokens, without per-token loss)")
    print(f"found    {found.norm():.6f} (with it): relative difference {off:.1e}")
    wrong = not off <= 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
