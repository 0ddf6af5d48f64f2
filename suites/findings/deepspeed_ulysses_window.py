"""DeepSpeed's Ulysses attention for Transformers forgets sliding windows under SDPA.

A user trains a model with a sliding window on two ranks of sequence parallelism. UlyssesSPAttentionHF discards the mask
that Transformers made, and SDPA without a mask is causal attention over the whole sequence, in every layer. Without a
window the logits are those of one rank.
"""

import os
import sys
import tempfile
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.comm
import deepspeed.ops
import torch
import torch.distributed as dist
from deepspeed.runtime.sequence_parallel.ulysses_sp import UlyssesSPAttentionHF
from transformers import Qwen3Config, Qwen3ForCausalLM

warnings.simplefilter("ignore")
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start
SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 8}
WINDOW = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}
TOKENS = torch.arange(16)[None] * 5 % 32


def model(**fields: object) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attn_implementation": "sdpa"}
    return Qwen3ForCausalLM(Qwen3Config(**SIZES, **heads, **fields))


def logits(made: Qwen3ForCausalLM, part: slice = slice(None)) -> torch.Tensor:
    places = torch.arange(16)[None]
    with torch.no_grad():
        return made(input_ids=TOKENS[:, part], position_ids=places[:, part], use_cache=False).logits


def train(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    deepspeed.comm.init_distributed("gloo", dist_init_required=False, verbose=False)
    models = [model(), model(**WINDOW)]
    own, errors = slice(8 * rank, 8 * rank + 8), []
    alone = [logits(each)[:, own] for each in models]  # before SDPA is replaced
    UlyssesSPAttentionHF.register_with_transformers(models[0], "sdpa", 2, 1)
    for each, expected in zip(models, alone, strict=True):
        errors.append(float((logits(each, own) - expected).norm() / expected.norm()))
    torch.save(errors, f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    full, found = (max(pair) for pair in zip(*(torch.load(f"{folder}/{r}.pt") for r in range(2)), strict=True))
assert full < 1e-4, f"without a window the logits differ by {full:.1e}"
print(f"expected the logits of one rank, as without a window: relative difference {full:.1e}")
print(f"found    with a window of 3 tokens: relative difference {found:.1e}")
print("still there" if found > 1e-3 else "gone")
sys.exit(1 if found > 1e-3 else 0)
