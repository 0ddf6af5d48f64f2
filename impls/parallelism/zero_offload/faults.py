"""ZeRO-Offload and ZeRO-Infinity with exactly one thing broken."""

from typing import Any

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import REPLAYED, TRAINED, Fault
from impls.parallelism.zero_offload import reference


def a_write_left_behind(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The last piece's new states never reach the file: each step begins with the first ones."""
    trainer = reference.build(workload, topology, **variant)
    store, (last, _) = trainer.states.store, trainer.states.extents[-1]
    write = store.write
    store.write = lambda offset, data: store.read(offset, data) if offset == last else write(offset, data)
    return trainer


def a_step_too_many_counted(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The host's AdamW takes its first step for its second: the moments' bias is corrected too little."""
    trainer = reference.build(workload, topology, **variant)
    trainer.stage.count = 1
    return trainer


def states_that_stay_in_memory(workload: Workload, topology: Topology, states_on: str, **variant: Any) -> Trainer:
    """The optimizer's states are on the host, where files were asked for."""
    return reference.build(workload, topology, states_on="host", **variant)


FAULTS = {
    "a_write_left_behind": Fault(
        "nvme_params",
        "dp2",
        {"parity": {"fp32": REPLAYED | TRAINED, "bf16": REPLAYED | {"update"}}},
        where="update of lm_head.",
    ),
    "a_step_too_many_counted": Fault(
        "offload_optimizer", "dp2", {"parity": {"fp32": REPLAYED, "bf16": REPLAYED}}, workload="tiny_adamw"
    ),
    "states_that_stay_in_memory": Fault("nvme_states", "dp2", {"memory": {"fp32": {"states"}}}, workload="tiny_adamw"),
}
