"""Megatron-Core's multi-token prediction is not a mean over its tokens if the loss is per token.

A user sets `mtp_num_layers=1` and `calculate_per_token_loss`. MTP's loss is a sum over the tokens that are left when
the labels are shifted once more, but finalize_model_grads() divides it by the tokens of the main loss.
"""

import logging
import sys
import tempfile
import warnings

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

logging.disable(logging.WARNING)
warnings.simplefilter("ignore")  # absent GPU packages
try:
    from megatron.core import parallel_state
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
    from megatron.core.models.gpt import GPTModel
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec, get_gpt_mtp_block_spec
    from megatron.core.tensor_parallel.random import initialize_rng_tracker
    from megatron.core.transformer.transformer_config import TransformerConfig
except ImportError as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)

LENGTH, VOCABULARY = 4, 16
MASKS = {"4 and 4": [[1, 1, 1, 1], [1, 1, 1, 1]], "2 and 4": [[1, 1, 0, 0], [1, 1, 1, 1]]}  # of each rank's tokens


def gradient(mask: torch.Tensor, per_token: bool) -> torch.Tensor:
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
    tokens = torch.randint(VOCABULARY, (2, LENGTH + 1))[dist.get_rank()][None]
    positions, future = torch.arange(LENGTH)[None], torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    losses = mask * model(tokens[:, :-1], positions, future, labels=tokens[:, 1:], loss_mask=mask)
    (losses.sum() if per_token else losses.sum() / mask.sum()).backward()
    if per_token:
        finalize_model_grads([model], mask.sum().int())
    return torch.cat([p.main_grad.flatten() for name, p in gpt.named_parameters() if name.startswith("mtp.")])


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    torch.compiler.set_stance("force_eager")  # else compiling takes most of the time
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(create_gloo_process_groups=False)  # the ranks are data-parallel
    results = {}
    for name, masks in MASKS.items():
        mask = torch.tensor(masks[rank], dtype=torch.float)[None]
        count = mask[:, 1:].sum()  # tokens that MTP predicts
        total = count * gradient(mask, per_token=False)  # its mean on this rank, not yet reduced
        dist.all_reduce(total)
        dist.all_reduce(count)
        results[name] = total / count, gradient(mask, per_token=True)
    torch.save(results, f"{folder}/{rank}")
    dist.barrier()


def main() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, (folder,), nprocs=2, start_method="fork")
        results = torch.load(f"{folder}/0")
    off = []
    for tokens, (expected, found) in results.items():
        off.append(((found - expected).norm() / expected.norm()).item())
        print(f"expected norm of MTP's gradients {expected.norm():.6f} ({tokens} tokens on 2 ranks, mean over MTP's)")
        print(f"found    {found.norm():.6f} (per-token loss): relative difference {off[-1]:.1e}")
    return not all(difference <= 1e-3 for difference in off)


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
