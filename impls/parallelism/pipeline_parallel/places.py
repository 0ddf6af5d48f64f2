"""Which rank holds which layers."""

from harness.spec import ModelConfig, Topology, Unsupported, Workload
from impls.common.stages import split
from impls.parallelism.pipeline_parallel.schedules import LOOPED, SCHEDULES, Plan

# Both of its copies are updated with the sum of both stages' gradients.
TIED = {
    "pipedream": "a tied embedding: the last stage would wait for the first one's gradient before each of its updates, "
    "which is a flush",
    "pipedream_2bw": "a tied embedding: its two gradients would have to be summed while the next mini-batch is "
    "computed, which is not done here",
}


def homes(config: ModelConfig, plan: Plan) -> dict[str, tuple[int, ...]]:
    """The ranks that hold each parameter, by canonical name, in ascending order."""
    layers = split(config.num_hidden_layers, plan.stages)
    of_layer = {layer: stage for stage, held in enumerate(layers) for layer in held}
    found = {}
    for name, _ in config.shapes():
        first, last = name.startswith("model.embed_tokens"), name.startswith(("model.norm", "lm_head"))
        places = {0} if first else {plan.stages - 1} if last else {of_layer[int(name.split(".")[2])]}
        if first and config.tie_word_embeddings:
            places.add(plan.stages - 1)
        found[name] = tuple(sorted({r for s, r in enumerate(plan.rank_of) if s % plan.stages in places}))
    return found


def plan_of(workload: Workload, topology: Topology, schedule: str, chunks: int) -> Plan:
    """The schedule's plan for this work. Raises Unsupported where it cannot be made."""
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
