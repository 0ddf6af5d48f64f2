"""Megatron-Core's `seq_aux_loss` shrinks with the micro-batch size if the loss is per token.

A user sets `calculate_per_token_loss` and a micro-batch size of 2. The router multiplies the loss by the length of one
sequence, but finalize_model_grads() divides by the tokens of both.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.moe import moe_utils
from megatron.core.transformer.moe.router import TopKRouter
from megatron.core.transformer.transformer_config import TransformerConfig

LENGTH, HIDDEN, EXPERTS = 8, 16, 4


def gradient(per_token: bool, batch: int) -> torch.Tensor:
    config = TransformerConfig(
        num_layers=1, hidden_size=HIDDEN, num_attention_heads=2, num_moe_experts=EXPERTS, add_bias_linear=False,
        perform_initialization=False, moe_router_load_balancing_type="seq_aux_loss", moe_aux_loss_coeff=0.1,
        calculate_per_token_loss=per_token,
    )  # fmt: skip
    torch.manual_seed(3)
    x = torch.randn(LENGTH, 1, HIDDEN).repeat(1, batch, 1)  # all sequences are the same
    router = TopKRouter(config, ProcessGroupCollection.use_mpu_process_groups())
    router.weight.data = torch.randn(EXPERTS, HIDDEN)
    router.set_layer_number(1)
    model = DistributedDataParallel(config, DistributedDataParallelConfig(), router)
    probs, _ = model(x)
    (0 * probs.sum()).backward()  # the loss that the router adds is all that has a gradient
    finalize_model_grads([model], torch.tensor(LENGTH * batch) if per_token else None)
    return router.weight.main_grad.clone()


def main() -> bool:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    moe_utils.te_general_gemm = None  # it is read, but not defined, without Transformer Engine
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
        parallel_state.initialize_model_parallel(create_gloo_process_groups=False)
        expected, one, found = gradient(False, batch=2), gradient(True, batch=1), gradient(True, batch=2)
        dist.destroy_process_group()
    print(f"expected norm of the router's gradient {expected.norm():.6f} (2 equal sequences, without per-token loss)")
    off, off_one = (((t - expected).norm() / expected.norm()).item() for t in (found, one))
    print(f"found    {found.norm():.6f} (with it): relative difference {off:.1e} (1 sequence, with it: {off_one:.1e})")
    if off_one > 1e-3:
        raise RuntimeError("one sequence per micro-batch is wrong too")
    return not off <= 1e-3


if __name__ == "__main__":
    wrong = main()
    print("still there" if wrong else "gone")
    sys.exit(wrong)
