"""FSDP2's ``reshard_after_forward=g``: after the forward pass weights are resharded inside a group, as hpZ does."""

from harness.spec import Topology, Unsupported, Workload
from impls.common.mesh import groups
from impls.engines.torch.fsdp import Sharded


def build(workload: Workload, topology: Topology, group: int, **techniques: int | bool) -> Sharded:
    if groups(topology, group) == 1:
        raise Unsupported(f"FSDP2 treats a group of all {topology.dp} ranks as ZeRO-3, and keeps no other partition")
    return Sharded(workload, topology, reshard=group)
