"""Activation checkpointing (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", §3 and §4).

The backward pass of a layer needs what its forward pass computed. Of L layers at c bytes each, keeping all of it takes
L·c bytes. Instead the layers are cut into segments, only the input of each segment is kept (x bytes, x ≪ c), and a
segment's layers run forward again just before their backward pass:

    forward     x₀ ─[ 1 2 3 4 ]─ x₁ ─[ 5 6 7 8 ]─ x₂ ─[ 9 … 12 ]─ x₃ ─[ 13 … 16 ]─ loss         L = 16, k = 4
    backward                                                          └ forward 13 … 16 from x₃, then backward
                                                       └ forward 9 … 12 from x₂, then backward …

    variant                kept                       most at once            forward passes of layers again
    no_recompute           L·c                        L·c                     0
    recompute_layers       L·x                        L·x + c                 L        (k = 1)
    recompute_two_layers   L/2·x                      L/2·x + 2c              L        (k = 2)
    recompute_sqrt         √L·x                       √L·x + √L·c             L        (§4.3, eq. 1: O(√L), k = √L)
    recompute_nested       2x                         2·log₂L·x + c           L·log₂L  (§4.4: a segment's halves are
                                                                                        segments again)
    recompute_attention    L·(c − 4abs²)              the same + 4abs²        attention's two products
    recompute_operators    L·(x + products' results)  the same + c            attention's two products
    recompute_offload      L·x, on the host           c on the device         L

The last three are selective. Attention alone (Korthikanti et al. 2022, §5): QKᵀ, softmax and the product with V are
most of the memory and little of the arithmetic. By operator (Chen et al., §4.2): products with weights are expensive
and their results are kept; norms, rotations, SiLU, dropout, and attention's batched products are computed again.

The segment includes the residual sum, so that its gradient is added up in the same order as without recomputation, and
is equal to it bit by bit. Under tensor parallelism a replay repeats the sums over ranks; dropout is for one rank.

    b batch   s sequence   h hidden_size   a heads   L layers   k layers of a segment
"""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor

from harness.spec import ModelConfig, Topology, Workload
from impls.acceleration.activation_checkpointing.attention import attend
from impls.acceleration.activation_checkpointing.cuts import halves, segments
from impls.acceleration.activation_checkpointing.segment import segment
from impls.common.decoder import Layer
from impls.common.rope import rope_table
from impls.parallelism.tensor_parallel.operators import Group
from impls.parallelism.tensor_parallel.reference import ParallelDecoder, TensorParallel, attention, mlp

EXPENSIVE = frozenset({torch.ops.aten.mm.default, torch.ops.aten.addmm.default})  # products with weights


class CheckpointedDecoder(ParallelDecoder):
    """``each``: layers of a segment, or "sqrt"; 0: none."""

    def __init__(
        self,
        config: ModelConfig,
        group: Group,
        each: int | str,
        nested: bool,
        attention_alone: bool,
        by_operator: bool,
        on_host: bool,
    ) -> None:
        super().__init__(config, group)
        self.cut, self.nested = segments(config.num_hidden_layers, each), nested
        self.segment = partial(segment, on_host=on_host, policy=EXPENSIVE if by_operator else frozenset())
        for index, layer in enumerate(self.model.layers):
            own = partial(attend, window=config.window(index))
            layer.self_attn.attend = partial(self.segment, own) if attention_alone else own

    def blocks(self, x: Tensor, layers: Iterable[Layer], s: int) -> Tensor:
        """[b, s, h] → [b, s, h]"""
        tables = [table.to(x.dtype) for table in rope_table(s, self.config, x.device)]
        every = range(len(self.model.layers))
        if self.nested:
            return self.halved(every, x, *tables)
        if not self.cut:
            return self.run(every, x, *tables)
        for part in self.cut:
            x = self.segment(partial(self.run, part), x, *tables)
        return x

    def run(self, part: range, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """[b, s, h] → [b, s, h], through the layers of a segment."""
        for index in part:
            layer = self.model.layers[index]
            x = x + layer.drop(attention(layer.input_layernorm(x), layer.self_attn, cos, sin, self.group))
            x = x + layer.drop(mlp(layer.post_attention_layernorm(x), layer.mlp, self.group))
        return x

    def halved(self, part: range, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """The same; each half is a segment, which is halved again when it is replayed."""
        if len(part) == 1:
            return self.run(part, x, cos, sin)
        for half in halves(part):
            x = self.segment(partial(self.halved, half), x, cos, sin)
        return x


def build(
    workload: Workload,
    topology: Topology,
    each: int | str = 0,
    nested: bool = False,
    attention_alone: bool = False,
    by_operator: bool = False,
    on_host: bool = False,
) -> TensorParallel:
    torch.manual_seed(workload.seed)  # every variant drops the same elements
    decoder = partial(
        CheckpointedDecoder,
        each=each,
        nested=nested,
        attention_alone=attention_alone,
        by_operator=by_operator,
        on_host=on_host,
    )
    return TensorParallel(workload, topology, decoder)
