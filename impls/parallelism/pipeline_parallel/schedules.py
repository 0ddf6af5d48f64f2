"""All schedules by name, and the plan that one of them gives for some work."""

from collections.abc import Callable

from harness.spec import Topology, Unsupported, Workload
from impls.common.cuts import split
from impls.parallelism.pipeline_parallel.basic import (
    gpipe,
    interleaved,
    looped_bfs,
    one_f_one_b,
    pipedream,
    pipedream_2bw,
)
from impls.parallelism.pipeline_parallel.dual_pipe import dual_pipe, dual_pipe_v
from impls.parallelism.pipeline_parallel.plan import Plan
from impls.parallelism.pipeline_parallel.zero_bubble import interleaved_zb, zb_h1, zb_v

SCHEDULES: dict[str, Callable[..., Plan]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "looped_bfs": looped_bfs,
    "interleaved_zb": interleaved_zb,
    "zb_h1": zb_h1,
    "zb_v": zb_v,
    "dual_pipe": dual_pipe,
    "dual_pipe_v": dual_pipe_v,
    "pipedream": pipedream,
    "pipedream_2bw": pipedream_2bw,
}
LOOPED = ("interleaved", "looped_bfs", "interleaved_zb")  # take the number of stages a rank
ASYNCHRONOUS = ("pipedream", "pipedream_2bw")  # update inside the step
# Both copies of a tied embedding are updated with the sum of both stages' gradients.
TIED = {
    "pipedream": "a tied embedding: the last stage would wait for the first one's gradient before each of its updates, "
    "which is a flush",
    "pipedream_2bw": "a tied embedding: its two gradients would have to be summed while the next mini-batch is "
    "computed, which is not done here",
}


def plan_of(workload: Workload, topology: Topology, schedule: str, chunks: int = 2) -> Plan:
    """The schedule's plan for this work; ``chunks``: stages a rank, if it takes several. Raises Unsupported where it
    cannot be made."""
    arguments = (chunks,) if schedule in LOOPED else ()
    try:
        plan = SCHEDULES[schedule](topology.pp, workload.micro_batches, *arguments)
        split(workload.model.num_hidden_layers, plan.stages)
    except ValueError as error:
        raise Unsupported(str(error)) from None
    if plan.versions and workload.max_grad_norm:
        raise Unsupported("a global gradient norm is known when all stages are done: clipping would take a flush")
    if plan.versions and workload.model.tie_word_embeddings and plan.stages > 1:
        raise Unsupported(TIED[schedule])
    return plan
