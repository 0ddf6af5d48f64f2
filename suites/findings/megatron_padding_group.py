"""Megatron-Core's GPTModel cuts the padding mask by another group's rank than the tokens.

A user gives GPTModel process groups of its own, sequence parallelism and a `padding_mask`. The embedding is scattered
over the model's TP group, the mask over the TP group of parallel_state.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.tensor_parallel.random import initialize_rng_tracker
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayer, TransformerLayerSubmodules

PAD = 7
TOKENS = torch.tensor([[0, 1, 2, 3, 4, 5, PAD, PAD]])


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    initialize_rng_tracker(inference_rng_tracker=True)  # no states of CUDA's generator
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    groups = ProcessGroupCollection.use_mpu_process_groups()  # its TP groups are ranks 0 and 1, 2 and 3
    groups.tp = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])][rank % 2]
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=2, tensor_model_parallel_size=2, sequence_parallel=True,
        use_cpu_initialization=True, hidden_dropout=0.0,
    )  # fmt: skip
    identity = ModuleSpec(TransformerLayer, submodules=TransformerLayerSubmodules())  # the layers do not matter here
    model = GPTModel(config, identity, 8, 8, post_process=False, position_embedding_type="none", pg_collection=groups)
    first = torch.arange(4) + 4 * groups.tp.rank() == PAD  # the padding token is embedded as 0, others as 1
    model.embedding.word_embeddings.weight.data = torch.where(first, 0.0, 1.0)[:, None].expand(4, 8).contiguous()
    seen = {}
    model.decoder.register_forward_pre_hook(lambda _module, _args, kwargs: seen.update(kwargs), with_kwargs=True)
    model(TOKENS, torch.arange(8)[None], None, padding_mask=TOKENS == PAD)
    torch.save(((seen["hidden_states"][:, 0, 0] == 0).int(), seen["padding_mask"][0].int()), f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=4, start_method="fork")
        ranks = [torch.load(f"{folder}/{rank}") for rank in range(4)]
    for rank, (expected, found) in enumerate(ranks):
        print(f"expected rank {rank}: padding {expected.tolist()} (rows of the embedding that hold the padding token)")
        print(f"found    rank {rank}: padding {found.tolist()}")
    if sum(expected.sum() for expected, _ in ranks) != 2 * (TOKENS == PAD).sum():
        raise RuntimeError("the embedding is not divided over the model's own group")
    wrong = any(not torch.equal(expected, found) for expected, found in ranks)
    print("still there" if wrong else "gone")
    sys.exit(wrong)
