"""The promises of ZeRO++ (Wang et al. 2023, §3): each message to the byte, with its scales and the units' padding."""

from math import prod

from harness.spec import ModelConfig, Topology, Workload
from impls.parallelism.zero import laws as zero

BLOCK, SCALE = 256, 4  # elements of a block, bytes of its scale


def units(model: ModelConfig) -> list[int]:
    """Elements of the units: the embedding with the norms outside layers, each layer's attention and MLP, the head."""
    sizes: dict[str, int] = {}
    for name, shape in model.shapes():
        layer, block, _ = name.partition(".self_attn." if ".self_attn." in name else ".mlp.")
        unit = layer + block if block else name if name.startswith("lm_head") else ""
        sizes[unit] = sizes.get(unit, 0) + prod(shape)
    return list(sizes.values())


def message(elements: int, element_size: int, bits: int) -> int:
    """Bytes of a shard: unquantised, or a scale for each block followed by the codes."""
    return SCALE * -(-elements // BLOCK) + -(-elements * bits // 8) if bits else elements * element_size


def states(
    workload: Workload, topology: Topology, group: int, weight_bits: int, gradient_bits: int, hierarchical: bool
) -> float:
    """Bytes of model states: ZeRO-3's, and with hpZ also 1/g of the weights (§3.2).

    The figure is taken between backward pass and update. An engine that drops the secondary partition after its last
    gather uses less then.
    """
    secondary = workload.model.parameters * workload.element_size / group if hierarchical else 0.0
    return zero.states(workload, topology, stage=3) + secondary


def traffic(workload: Workload, topology: Topology, **variant: int) -> float:
    """Bytes that a rank sends in a step."""
    return sum(_sent(workload, topology, **variant))


def across(workload: Workload, topology: Topology, **variant: int) -> float:
    """Bytes of the collectives that involve ranks of more than one group."""
    return _sent(workload, topology, **variant)[0]


def _sent(
    workload: Workload, topology: Topology, group: int, weight_bits: int, gradient_bits: int, hierarchical: bool
) -> tuple[float, float]:
    """Returns (bytes in collectives of several groups, bytes in those of one).

    For a shard of a unit, Ψ_unit/N, a gather in a ring sends all N shards but one, and inside a group all of its g
    parts (of m shards each) but one. A reduce-scatter sends the same, and so does each all-to-all of a reduction in two
    hops. With k micro-batches there are 2k gathers, of which hpZ needs all ranks only for the first, and k reductions.
    """
    ranks, groups, k, e = topology.dp, topology.dp // group, workload.micro_batches, workload.element_size
    everywhere = inside = 0.0
    for unit in units(workload.model):
        shard = -(-unit // ranks)
        near = 2 * k - 1 if hierarchical else 0
        inside += near * (group - 1) * groups * shard * e
        everywhere += (2 * k - near) * (ranks - 1) * message(shard, e, weight_bits)
        if gradient_bits:
            inside += k * (group - 1) * groups * message(shard, e, gradient_bits)
            everywhere += k * (groups - 1) * message(shard, e, gradient_bits)
        else:
            everywhere += k * (ranks - 1) * shard * e
    return (everywhere, inside) if groups > 1 else (0.0, everywhere + inside)
