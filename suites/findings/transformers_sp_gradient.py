"""Transformers' Trainer makes the gradient sp_size times too large under sequence parallelism.

A user trains with ParallelismConfig(sp_size=2). The Trainer's loss is right, but it comes from a differentiable
all_gather, whose backward pass already sums over ranks; DeepSpeed sums again. Clipping and SGD see twice the gradient.
"""

import logging
import os
import sys
import tempfile
import warnings

os.environ["DS_ACCELERATOR"] = "cpu"
import deepspeed.ops
import torch
import torch.distributed as dist
from accelerate import Accelerator, DeepSpeedPlugin
from accelerate.utils import DeepSpeedSequenceParallelConfig, InitProcessGroupKwargs, ParallelismConfig
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.integrations.deepspeed import deepspeed_sp_compute_loss

warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # a CPU's faster all-reduce is compiled at start
SIZES = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "head_dim": 8}
CONFIG = Qwen3Config(**SIZES, num_attention_heads=4, num_key_value_heads=2, attn_implementation="sdpa")
ZERO1 = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True}
TOKENS, UNCLIPPED = torch.arange(16)[None] * 5 % 32, {"gradient_clipping": 0.0}


def train(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, places, own = Qwen3ForCausalLM(CONFIG), torch.arange(16)[None], slice(8 * rank, 8 * rank + 8)
    expected = torch.autograd.grad(alone := model(input_ids=TOKENS, labels=TOKENS).loss, list(model.parameters()))
    handler = DeepSpeedSequenceParallelConfig(sp_seq_length_is_variable=True, sp_attn_implementation="sdpa")
    parallel = ParallelismConfig(sp_backend="deepspeed", sp_size=2, sp_handler=handler)
    gloo, plugin = InitProcessGroupKwargs(backend="gloo"), DeepSpeedPlugin(hf_ds_config=ZERO1 | UNCLIPPED)
    accelerator = Accelerator(deepspeed_plugin=plugin, parallelism_config=parallel, kwargs_handlers=[gloo])
    engine, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    before = [p.detach().clone() for p in model.parameters()]
    labels = torch.nn.functional.pad(TOKENS[:, 1:], (0, 1), value=-100)  # as UlyssesSPDataLoaderAdapter does
    inputs = {"input_ids": TOKENS, "position_ids": places, "shift_labels": labels}
    inputs = {name: tensor[:, own].contiguous() for name, tensor in inputs.items()}
    loss = deepspeed_sp_compute_loss(accelerator, engine, inputs, False, parallel)
    accelerator.backward(loss)  # DeepSpeed's engine steps in it
    steps = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    norms = [torch.nn.utils.get_total_norm(each) for each in (expected, steps)]
    torch.save([float(each) for each in (alone.detach(), loss.detach(), *norms)], f"{folder}/{rank}.pt")


with tempfile.TemporaryDirectory() as folder:
    torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
    alone, loss, expected, found = torch.load(f"{folder}/0.pt")
assert abs(loss / alone - 1) < 1e-4, f"the loss is {loss}, on one rank {alone}"
print(f"expected a gradient with the norm {expected:.4f}, as on one rank; the losses are {alone:.4f} and {loss:.4f}")
print(f"found    an SGD step with the norm {found:.4f} at a learning rate of 1: {found / expected:.3f} times as large")
print("still there" if found > 1.01 * expected else "gone")
sys.exit(1 if found > 1.01 * expected else 0)
