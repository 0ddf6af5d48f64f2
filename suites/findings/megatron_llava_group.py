"""Megatron-Core's LLaVA scatters the embeddings over another group than the language model's.

A user gives LLaVAModel process groups of its own and sequence parallelism. The embeddings are scattered over the TP
group of parallel_state, so a rank of the language model keeps other rows than its own.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.multimodal.llava_model import LLaVAModel
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.transformer_config import TransformerConfig

ROWS = 8


def work(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=4)
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2, create_gloo_process_groups=False)
    groups = ProcessGroupCollection.use_mpu_process_groups()  # its TP groups are ranks 0 and 1, 2 and 3
    groups.tp = [dist.new_group(ranks) for ranks in ([0, 2], [1, 3])][rank % 2]
    config = TransformerConfig(
        num_layers=1, hidden_size=8, num_attention_heads=2, tensor_model_parallel_size=2, sequence_parallel=True
    )
    config.language_model_type = "nemotron5-hybrid"  # other types demand Transformer Engine for sequence parallelism
    vision = TransformerConfig(num_layers=1, hidden_size=8, num_attention_heads=2)
    vision.vision_model_type = "clip"
    # Without layers (None): only the division of the embeddings matters here.
    model = LLaVAModel(
        config, None, 8, ROWS, vision, None, False, None, None, add_encoder=False, add_decoder=False,
        pg_collection=groups,
    )  # fmt: skip
    embeddings = torch.arange(ROWS)[:, None, None].expand(ROWS, 1, 8).contiguous()  # [s, b, h]: row i holds i
    kept, *_ = model._process_embedding_token_parallel(embeddings, None, None, None)  # as its forward() does
    torch.save((groups.tp.rank(), kept[:, 0, 0].tolist()), f"{folder}/{rank}")
    dist.barrier()


def main() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=4, start_method="fork")
        ranks = [torch.load(f"{folder}/{rank}") for rank in range(4)]
    expected = [list(range(ROWS // 2 * tp_rank, ROWS // 2 * (tp_rank + 1))) for tp_rank, _ in ranks]
    for rank, (tp_rank, found) in enumerate(ranks):
        print(f"expected rank {rank}: rows {expected[rank]} (rank {tp_rank} of the language model's TP group)")
        print(f"found    rank {rank}: rows {found}")
    return expected != [found for _, found in ranks]


if __name__ == "__main__":
    wrong = main()
    print("still there" if wrong else "gone")
    sys.exit(wrong)
