"""The promises of overlap: the memory and bytes of tensor and sequence parallelism, in pieces that can be counted."""

from collections.abc import Mapping

from harness.spec import Topology, Workload
from impls.parallelism.sequence_parallel import laws as sequence_parallel
from impls.parallelism.tensor_parallel import laws as tensor_parallel

ALONG_THE_SEQUENCE = ("async_tp", "sequence_parallel")


def states(workload: Workload, topology: Topology, **variant: object) -> float:
    """Bytes of states: those of tensor parallelism."""
    return tensor_parallel.states(workload, topology)


def activations(workload: Workload, topology: Topology, technique: str, overlap: bool = True) -> float:
    """Bytes kept for the backward pass: halves and tiles together keep as much as the whole. Domino also keeps inputs
    of 2L + 1 norms, [b, s, h] each, at which its stages are cut; in float32 or wider the norm saves it anyhow."""
    kept = sequence_parallel.activations(workload, topology, sequence_parallel=technique in ALONG_THE_SEQUENCE)
    if technique == "domino" and workload.element_size < 4:
        tokens = workload.tokens / workload.micro_batches / topology.dp
        cuts = 2 * workload.model.num_hidden_layers + 1
        kept += cuts * tokens * workload.model.hidden_size * workload.element_size
    return kept


def traffic(workload: Workload, topology: Topology, technique: str, overlap: bool = True) -> float | None:
    """Bytes that a rank sends in a step. Domino: the all-reduces of tensor parallelism, each in two halves. A ring: t−1
    messages of ⌈s/t⌉·b·h elements for each gather or reduce-scatter of sequence parallelism."""
    return sequence_parallel.traffic(workload, topology, sequence_parallel=technique in ALONG_THE_SEQUENCE)


def flights(
    workload: Workload,
    topology: Topology,
    technique: str,
    overlap: bool = True,
    times: Mapping[str, float] | None = None,
) -> float:
    """The number of communications that a rank issues in a step, per micro-batch of L layers, forward and backward:

        Domino          2 sums, of the two halves, at 2L + 1 boundaries of stages; backward as many
        asynchronous    rings of t−1 messages: 2L + 1 gathers and 2L scatters; backward 2L gathers for the scatters,
                        and for the gathers 2L + 1 gathers again and 2L + 1 scatters of their gradients

    and one collective for each of these and for the embedding, if nothing is in pieces and nothing is watched.
    """
    layers, t = workload.model.num_hidden_layers, topology.tp
    sums, rings = 2 * (2 * layers + 1), 10 * layers + 3
    issued = {"domino": 2 * sums, "tensor_parallel": sums, "async_tp": (t - 1) * rings, "sequence_parallel": rings + 2}
    return float(workload.micro_batches * issued[technique])
