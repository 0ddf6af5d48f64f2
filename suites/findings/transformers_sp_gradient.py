"""Transformers' Trainer makes the gradient sp_size times too large under sequence parallelism.

A user trains with ParallelismConfig(sp_size=2). The Trainer's loss is right on each rank, but it comes from a
differentiable all_gather, whose backward pass already sums over the ranks, each of which has the whole loss; DeepSpeed
then sums the gradients of a sequence over its ranks too. Clipping and SGD's steps see twice the gradient.
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
CONFIG = Qwen3Config(
    vocab_size=32, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
    num_key_value_heads=2, head_dim=8, attn_implementation="sdpa",
)  # fmt: skip
STAGE = {"train_micro_batch_size_per_gpu": 1, "zero_optimization": {"stage": 1}, "zero_allow_untested_optimizer": True}
TOKENS = torch.arange(16)[None] * 5 % 32


def train(rank: int, folder: str) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.manual_seed(0)
    model, places, own = Qwen3ForCausalLM(CONFIG), torch.arange(16)[None], slice(8 * rank, 8 * rank + 8)
    alone = model(input_ids=TOKENS, labels=TOKENS).loss
    expected = torch.autograd.grad(alone, list(model.parameters()))
    handler = DeepSpeedSequenceParallelConfig(sp_seq_length_is_variable=True, sp_attn_implementation="sdpa")
    parallel = ParallelismConfig(sp_backend="deepspeed", sp_size=2, sp_handler=handler)
    gloo = InitProcessGroupKwargs(backend="gloo")
    plugin = DeepSpeedPlugin(hf_ds_config=STAGE | {"gradient_clipping": 0.0})
    accelerator = Accelerator(deepspeed_plugin=plugin, parallelism_config=parallel, kwargs_handlers=[gloo])
    engine, _ = accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
    before = [p.detach().clone() for p in model.parameters()]
    labels = torch.nn.functional.pad(TOKENS[:, 1:], (0, 1), value=-100)  # as UlyssesSPDataLoaderAdapter does
    inputs = {"input_ids": TOKENS, "position_ids": places, "shift_labels": labels}
    inputs = {name: tensor[:, own].contiguous() for name, tensor in inputs.items()}
    engine.train()
    loss = deepspeed_sp_compute_loss(accelerator, engine, inputs, False, parallel)
    accelerator.backward(loss)  # DeepSpeed's engine steps in it
    steps = [old - new.detach() for old, new in zip(before, model.parameters(), strict=True)]
    norms = [float(torch.nn.utils.get_total_norm(each)) for each in (expected, steps)]
    torch.save((float(alone.detach()), float(loss.detach()), *norms), f"{folder}/{rank}.pt")


try:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
        alone, loss, expected, found = torch.load(f"{folder}/0.pt")
    if abs(loss / alone - 1) > 1e-4:
        raise RuntimeError(f"the loss is {loss}, on one rank {alone}")
except Exception as error:
    print(f"cannot be judged: {error}")
    sys.exit(2)
print(f"expected a gradient with the norm {expected:.4f}, as on one rank; the losses are {alone:.4f} and {loss:.4f}")
print(f"found    an SGD step with the norm {found:.4f} at a learning rate of 1: {found / expected:.3f} times as large")
wrong = abs(found / expected - 1) > 1e-2
print("still there" if wrong else "gone")
sys.exit(1 if wrong else 0)
