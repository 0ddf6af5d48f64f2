"""torchgpipe: one process drives all stages."""

import torchgpipe

from harness.spec import Topology, Workload
from impls.engines.one_process import OneProcess


def build(workload: Workload, topology: Topology, schedule: str) -> OneProcess:
    return OneProcess(workload, topology, torchgpipe.GPipe)
