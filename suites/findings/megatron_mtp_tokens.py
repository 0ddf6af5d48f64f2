"""Megatron-Core's multi-token prediction is scaled too small if the loss is per token.

A user sets `mtp_num_layers=1` and `calculate_per_token_loss`. MTP's loss is a sum over the tokens that are left when
the labels are shifted once more, but finalize_model_grads() divides it by the tokens of the main loss.
"""

import logging
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")  # absent GPU packages
try:
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_mtp_block_spec
    from megatron.core.pipeline_parallel import get_forward_backward_func
    from megatron.core.tensor_parallel.random import initialize_rng_tracker
    from megatron.core.transformer.transformer_config import TransformerConfig
except ImportError as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)

LENGTH, VOCABULARY = 4, 16


def gradient(per_token: bool) -> torch.Tensor:
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=4, use_cpu_initialization=True, init_method_std=0.2,
        mtp_num_layers=1, mtp_loss_scaling_factor=1.0, calculate_per_token_loss=per_token, attention_dropout=0.0,
        hidden_dropout=0.0, finalize_model_grads_func=finalize_model_grads,
    )  # fmt: skip
    layer = get_gpt_layer_local_spec()
    mtp = get_gpt_mtp_block_spec(config, layer, use_transformer_engine=False)
    gpt = GPTModel(config, layer, VOCABULARY, LENGTH, mtp_block_spec=mtp, position_embedding_type="rope")
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), gpt)
    tokens, mask = torch.randint(VOCABULARY, (1, LENGTH + 1)), torch.ones(1, LENGTH)
    positions, future = torch.arange(LENGTH)[None], torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)

    def forward(_data, model):
        losses = model(tokens[:, :-1], positions, future, labels=tokens[:, 1:], loss_mask=mask)
        return losses, lambda losses: ((losses * mask).sum(), mask.sum().int(), {})

    get_forward_backward_func()(
        forward_step_func=forward, data_iterator=None, model=model, num_microbatches=1, seq_length=LENGTH,
        micro_batch_size=1, forward_only=False,
    )  # fmt: skip
    return torch.cat([p.main_grad.flatten() for name, p in gpt.named_parameters() if name.startswith("mtp.")])


def main() -> bool:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    zeros = torch.zeros
    torch.zeros = lambda *shape, device=None, **options: zeros(*shape, **options)  # the schedule has a "cuda" scalar
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    with tempfile.NamedTemporaryFile() as store:
        dist.init_process_group("gloo", init_method=f"file://{store.name}", rank=0, world_size=1)
        parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
        expected, found = gradient(per_token=False), gradient(per_token=True)
        dist.destroy_process_group()
    # One sequence in one micro-batch: a mean over the tokens and a mean over the samples are the same.
    print(f"expected norm of the MTP layer's gradients {expected.norm():.6f} (mean over its {LENGTH - 1} tokens)")
    off = ((found - expected).norm() / expected.norm()).item()
    print(f"found    {found.norm():.6f} (per-token loss): relative difference {off:.1e}")
    return not off <= 1e-3


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
