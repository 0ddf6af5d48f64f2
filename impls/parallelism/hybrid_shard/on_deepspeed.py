"""DeepSpeed's MiCS (``mics_shard_size``). DeepSpeed 0.19 has removed it and reports so itself."""

from harness.spec import Topology, Unsupported, Workload
from impls.engines.deepspeed.engine import Engine, deepspeed


def build(workload: Workload, topology: Topology, group: int, two_hop: bool) -> Engine:
    try:
        return Engine(workload, topology, {"stage": 3, "mics_shard_size": group})
    except deepspeed.runtime.config.DeepSpeedConfigError as error:
        answer = str(error).partition(" See ")[0]
        raise Unsupported(f"DeepSpeed {deepspeed.__version__} refuses mics_shard_size {group}: {answer}") from error
