"""Megatron-Core's own GPTModel with ``sequence_parallel``; everything else is as in tensor parallelism."""

import copy

from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import nn

from harness.spec import Topology, Unsupported, Workload
from impls.engines.megatron.gpt import Gpt, specification


class Norm(WrappedTorchNorm):
    """Megatron's PyTorch norm rejects ``sequence_parallel``, for which it has the norms of Apex and Transformer Engine.
    It lacks only the mark on its gain by which ``finalize_model_grads`` sums the gradient over ranks."""

    def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float) -> nn.Module:  # type: ignore[misc]
        plain = copy.copy(config)
        plain.sequence_parallel = False
        norm = super().__new__(cls, plain, hidden_size, eps)
        norm.weight.sequence_parallel = True
        return norm


def block(layer: ModuleSpec, layers: int) -> TransformerBlockSubmodules:
    """The layer specification with these norms, for each layer that Megatron specifies."""
    parts = layer.submodules
    parts.input_layernorm = parts.pre_mlp_layernorm = Norm
    attention = parts.self_attention.submodules
    attention.q_layernorm = attention.k_layernorm = Norm
    return TransformerBlockSubmodules(layer_specs=[layer] * layers, layer_norm=Norm)


def check(workload: Workload, topology: Topology) -> None:
    """Raises Unsupported, with the reason, if there is no sequence parallelism."""
    if topology.tp == 1:
        raise Unsupported("Megatron-Core has no sequence parallelism without tensor parallelism")
    if workload.sequence_length % topology.tp:
        raise Unsupported(
            f"Megatron-Core cuts the sequence into equal parts only, and tp {topology.tp} does not divide "
            f"{workload.sequence_length}"
        )


def with_sequence_parallel(workload: Workload, topology: Topology, shard_states: bool = False) -> Gpt:
    check(workload, topology)
    layers = workload.model.num_hidden_layers // topology.pp
    return Gpt(
        workload,
        topology,
        lambda: block(specification(), layers),
        shard_states=shard_states,
        sequence_parallel=True,
    )
