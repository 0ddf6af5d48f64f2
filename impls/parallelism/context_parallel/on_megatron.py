"""Megatron-Core's context parallelism: ``TEDotProductAttention``, whose rings and exchanges are Transformer Engine's.

Both need a sequence in the zig-zag layout, including the exchange of heads (cp_comm_type "a2a").
"""

from collections.abc import Mapping

import torch
from megatron.core.extensions.transformer_engine import TEDotProductAttention
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from harness.spec import Topology, Unsupported, Workload
from impls.engines.megatron.start import start
from impls.parallelism.context_parallel.spread import SequenceFirst


class Attention(SequenceFirst):
    def __init__(self, workload: Workload, topology: Topology, exchange: str) -> None:
        super().__init__(workload, topology, "zigzag", 1, packed=False)
        model = workload.model
        if workload.dtype != "bf16":
            raise Unsupported(f"Transformer Engine's attention across ranks takes bf16, not {workload.dtype}")
        if exchange == "a2a" and model.num_key_value_heads % topology.cp:
            raise Unsupported(f"{model.num_key_value_heads} key heads do not divide among {topology.cp} ranks")
        start(topology)
        config = TransformerConfig(
            num_layers=1,
            hidden_size=model.num_attention_heads * model.head_dim,
            num_attention_heads=model.num_attention_heads,
            num_query_groups=model.num_key_value_heads,
            kv_channels=model.head_dim,
            context_parallel_size=topology.cp,
            attention_dropout=0.0,
            bf16=True,
            params_dtype=torch.bfloat16,
        )
        self.attention = TEDotProductAttention(config, 1, AttnMaskType.causal, "self", cp_comm_type=exchange)

    def __call__(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        query, key, value = (inputs[name].permute(2, 0, 1, 3) for name in ("query", "key", "value"))
        output = self.attention(query, key, value, None, AttnMaskType.causal)  # [n, b, h·d]
        return {"output": output.view(query.shape).permute(1, 2, 0, 3)}


def build(workload: Workload, topology: Topology, layout: str = "contiguous", group: int = 1) -> Attention:
    return Attention(workload, topology, "a2a" if group == 0 else "p2p")
