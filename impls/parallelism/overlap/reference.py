"""Communication of tensor parallelism hidden behind computation, in two ways.

**Domino** (Wang et al. 2024, "Domino: Eliminating Communication in LLM Training via Generic Tensor Slicing and
Overlapping", row-wise split of the inputs). The next block needs a block's sum at once, so one batch leaves nothing to
compute meanwhile. But rows of a batch do not depend on each other: with two halves, the sum of one half is sent while
the other half is computed. The bytes are the same, in twice as many pieces (domino.py):

    tensor parallelism                     Domino
    compute   A ─ · ─ M ─ · ─              A₀ A₁ M₀ M₁
    wire      · ─ a ─ · ─ m ─                 a₀ a₁ m₀ m₁

**Asynchronous tensor parallelism** (Wang et al. 2023, "Overlap Communication with Dependent Computation via
Decomposition in Large Deep Learning Models"; Chang et al. 2024, "FLUX: Fast Software-based Communication Overlap On
GPUs Through Kernel Fusion"). With sequence parallelism a product follows a gather, or a reduce-scatter follows a
product. Both are cut into t tiles that pass round a ring, each during the product of another one (ring.py).

With ``overlap=False`` every communication is waited for at once: the same pieces, nothing hidden. The two techniques
are compared with that, and with tensor and sequence parallelism themselves.

A sum in flight is hidden while the same rank computes. This need not gain time: on a CPU the transfer uses the cores
that compute. Some communication is neither overlapped nor watched: the cross-entropy's three numbers per token, the
sum of the gains' gradients, and in ``async_tp`` the embedding's sum, which no product follows.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from harness.spec import Batch, ModelConfig, Spans, Topology, Unsupported, Workload
from impls.common.decoder import MLP, Attention
from impls.common.features import without
from impls.parallelism.overlap import ring
from impls.parallelism.overlap.domino import DominoDecoder
from impls.parallelism.overlap.wire import Wire
from impls.parallelism.sequence_parallel import reference as sequence_parallel
from impls.parallelism.sequence_parallel.reference import SequenceParallel, SequenceParallelDecoder
from impls.parallelism.tensor_parallel.operators import Group, biased
from impls.parallelism.tensor_parallel.reference import TensorParallel, heads


class RingDecoder(SequenceParallelDecoder):
    """Sequence parallelism's part of the decoder, with its gathers and scatters inside the adjacent products."""

    def __init__(self, config: ModelConfig, group: Group, wire: Wire) -> None:
        super().__init__(config, group, self._columns)
        self.wire, self.products = wire, 0

    def _columns(self, x: Tensor, group: Group, s: int, *weights: Tensor) -> tuple[Tensor, ...]:
        self.products += 1
        out: tuple[Tensor, ...] = ring.Columns.apply(x, self.wire, self.products, s, *weights)
        return out

    def _rows(self, z: Tensor, weight: Tensor) -> Tensor:
        self.products += 1
        return ring.Rows.apply(z, self.wire, self.products, weight)

    def attention(self, y: Tensor, part: Attention, cos: Tensor, sin: Tensor) -> Tensor:
        weights = part.q_proj.weight, part.k_proj.weight, part.v_proj.weight
        projected = [p.transpose(0, 1) for p in self._columns(y, self.group, len(cos), *weights)]  # [b, s, n/t]
        z = self._rows(heads(projected, part, cos, sin).transpose(0, 1), part.o_proj.weight)
        return biased(z, part.o_proj)

    def mlp(self, y: Tensor, part: MLP, s: int) -> Tensor:
        gate, up = self._columns(y, self.group, s, part.gate_proj.weight, part.up_proj.weight)
        z = F.silu(biased(gate, part.gate_proj)) * biased(up, part.up_proj)
        return biased(self._rows(z, part.down_proj.weight), part.down_proj)

    def forward(self, tokens: Tensor, labels: Tensor) -> Tensor:
        self.products = 0
        return super().forward(tokens, labels)


class Watched:
    """A trainer whose communication goes over ``model.wire``."""

    model: Any

    def record(self, spans: Spans | None) -> None:
        self.model.wire.record(spans)

    def backward(self, batch: Batch) -> Tensor:
        loss: Tensor = super().backward(batch)  # type: ignore[misc]
        self.model.wire.pause()
        return loss


class Domino(Watched, TensorParallel):
    pass


class AsyncTensorParallel(Watched, SequenceParallel):
    pass


def build(workload: Workload, topology: Topology, technique: str, overlap: bool = True) -> TensorParallel:
    """``technique``: domino, async_tp, or the whole operation that they divide: tensor_parallel, sequence_parallel."""
    if technique == "tensor_parallel":
        return TensorParallel(workload, topology)
    if technique == "sequence_parallel":
        return sequence_parallel.build(workload, topology)

    def decoder(config: ModelConfig, group: Group) -> RingDecoder | DominoDecoder:
        return (DominoDecoder if technique == "domino" else RingDecoder)(config, group, Wire(group, overlap))

    if technique == "async_tp":
        return AsyncTensorParallel(workload, topology, decoder)
    without(workload, "Domino's blocks end in sums over ranks; it", "o_bias", "mlp_bias")
    rows = workload.batch_size // (topology.dp * workload.micro_batches)
    if rows < 2:
        raise Unsupported(f"Domino divides a micro-batch into two halves of its rows, but this one has {rows}")
    return Domino(workload, topology, decoder)
