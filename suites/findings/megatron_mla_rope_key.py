"""Megatron-Core does not sum the rotary key's gradient over tensor-parallel ranks in multi-latent attention.

A user trains multi-latent attention at TP 2 with ColumnParallelLinear for `linear_kv_down_proj` (the local layers).
Each rank's heads use the whole rotary key, but the backward of its gather takes a slice of one rank's gradient.
"""

import sys
import tempfile

import megatron.core.transformer.multi_latent_attention as mla
import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.transformer_config import MLATransformerConfig

LATENT, ROPE = 8, 4  # widths of the latent and of the rotary key, which all heads share


def gradient(tp: int) -> torch.Tensor:
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=tp, create_gloo_process_groups=False)
    torch.manual_seed(0)  # the same weights for each size
    config = MLATransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=4, tensor_model_parallel_size=tp,
        use_cpu_initialization=True, init_method_std=0.2, add_bias_linear=False, rope_type="rope", q_lora_rank=None,
        kv_lora_rank=LATENT, qk_head_dim=8, qk_pos_emb_head_dim=ROPE, v_head_dim=8, apply_rope_fusion=False,
    )  # fmt: skip
    parts = mla.MLASelfAttentionSubmodules(
        ColumnParallelLinear, linear_kv_down_proj=ColumnParallelLinear, linear_kv_up_proj=ColumnParallelLinear,
        core_attention=IdentityOp, linear_proj=RowParallelLinear, q_layernorm=IdentityOp, kv_layernorm=IdentityOp,
    )  # fmt: skip
    attention = mla.MLASelfAttention(config, parts, layer_number=1)
    x, target = torch.randn(8, 1, 32), torch.randn(8, 1, 4, 8 + ROPE)
    key = attention.get_query_key_value_tensors(x)[1]  # [s, b, heads of this rank, 8 + ROPE]
    (key * target.chunk(tp, dim=2)[parallel_state.get_tensor_model_parallel_rank()]).sum().backward()
    parallel_state.destroy_model_parallel()
    return attention.linear_kv_down_proj.weight.grad


def work(rank: int, folder: str) -> None:
    torch.cuda.current_device = lambda: "cpu"  # where Megatron-Core allocates its buffers
    mla.HAVE_TE = False  # it is True without Transformer Engine
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save([gradient(tp) for tp in (1, 2)], f"{folder}/{rank}")
    dist.barrier()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(work, (folder,), nprocs=2, start_method="fork")
        (whole, half), (_, other) = (torch.load(f"{folder}/{rank}") for rank in (0, 1))
    (latent, expected), (same, found) = (g.split([LATENT, ROPE]) for g in (whole, torch.cat([half, other])))
    off = ((found - expected).norm() / expected.norm()).item()
    print(f"expected norm of the rotary key's gradient {expected.norm():.6f} (rows of linear_kv_down_proj, TP 1)")
    print(f"found    {found.norm():.6f} (TP 2): relative difference {off:.1e}")
    assert (same - latent).norm() <= 1e-3 * latent.norm(), "the latent rows' gradients are not those of TP 1 either"
    wrong = not off <= 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
