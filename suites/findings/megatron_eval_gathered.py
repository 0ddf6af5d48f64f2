"""Megatron-Core's loss is wrong if its logits are gathered: validation at TP 2 with `parallel_output=False`.

A user builds GPTModel with `parallel_output=False` (or calls it with `runtime_gather_output=True`) and gives labels.
The vocabulary-parallel cross entropy takes whole logits for a rank's shard and sums every exponential once per rank.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.transformer_config import TransformerConfig

LENGTH, VOCABULARY = 8, 16


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    torch.manual_seed(0)
    config = TransformerConfig(
        num_layers=1, hidden_size=16, num_attention_heads=4, tensor_model_parallel_size=2, use_cpu_initialization=True,
        init_method_std=0.5,
    )  # fmt: skip
    model = GPTModel(config, get_gpt_layer_local_spec(), VOCABULARY, LENGTH, parallel_output=False).eval()
    tokens, positions = torch.randint(VOCABULARY, (1, LENGTH + 1)), torch.arange(LENGTH)[None]
    mask = torch.ones(1, 1, LENGTH, LENGTH, dtype=torch.bool).triu(1)
    inputs, labels = (tokens[:, :-1], positions, mask), tokens[:, 1:]
    with torch.no_grad():
        logits = model(*inputs)  # [b, s, v]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        torch.save((logits.shape[-1], expected, model(*inputs, labels=labels).mean()), f"{folder}/{rank}")
    dist.barrier()


def main() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        columns, expected, found = torch.load(f"{folder}/0")
    print(f"expected loss {expected:.6f} (cross entropy of the model's gathered logits)")
    off = ((found - expected) / expected).item()
    print(f"found    loss {found:.6f}: relative difference {off:.1e}; log 2 is {torch.tensor(2.0).log():.6f}")
    if columns != VOCABULARY:
        raise RuntimeError(f"the logits are not gathered: {columns} columns")
    return not abs(off) <= 1e-3


if __name__ == "__main__":
    wrong = main()
    print("still there" if wrong else "gone")
    sys.exit(wrong)
