"""FairScale's Pipe, which was torchgpipe: one process drives all stages."""

from fairscale.nn import Pipe

from harness.spec import Topology, Workload
from impls.engines.one_process import OneProcess


def build(workload: Workload, topology: Topology, schedule: str) -> OneProcess:
    return OneProcess(workload, topology, Pipe)
