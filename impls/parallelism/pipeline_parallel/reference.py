"""Pipeline parallelism: the layers are cut into stages, and micro-batches follow one another through them.

    rank 0   layers 0 … L/p − 1        activations [b, s, h] ──▶
    rank 1   layers L/p … 2L/p − 1                           ◀── their gradients
    …

A rank idles while its first micro-batch is on the way and its last one comes back: the *bubble*, here always
idle ÷ total time. With m micro-batches that take F forward and B backward in a stage of p (Huang et al. 2019, §2.3;
Narayanan et al. 2021, §2.2):

    GPipe, 1F1B      (p − 1)(F + B) idle    of (m + p − 1)(F + B)           bubble (p − 1)/(m + p − 1)
    interleaved      (p − 1)(F + B)/v       of (m + (p − 1)/v)(F + B)
    ZB-H1            (p − 1)(F + B − W)     W: the weights' gradients, no longer a part of B (Qi et al. 2023, §2.3)
    PipeDream, 2BW   as 1F1B, with m or m/p updates in it; a flush at each of m/p updates would idle (p − 1)/(2p − 1)

What is run, in which order, on which rank is data (plan.py), which basic.py, zero_bubble.py and dual_pipe.py make;
one executor runs it (executor.py).

    p ranks   m micro-batches   v stages a rank   b sequences of a micro-batch   s sequence   h hidden_size
"""

from torch import Tensor

from harness.spec import Batch, Spans, Topology, Trainer, Workload
from impls.parallelism.pipeline_parallel.asynchronous import Asynchronous
from impls.parallelism.pipeline_parallel.executor import Executor
from impls.parallelism.pipeline_parallel.part import Part
from impls.parallelism.pipeline_parallel.plan import Plan
from impls.parallelism.pipeline_parallel.schedules import plan_of


class Pipeline:
    def __init__(self, workload: Workload, topology: Topology, plan: Plan) -> None:
        self.part = Part(workload, topology, plan)
        self.executor = Executor(plan, self.part.pipelines, self.part.stages)
        self.spans: Spans | None = None
        self.update, self.gradients, self.parameters = self.part.update, self.part.gradients, self.part.parameters

    def backward(self, batch: Batch) -> Tensor:
        losses = self.executor.run(*self.part.share(batch), self.spans)
        return self.part.combine(losses.sum())

    def record(self, spans: Spans | None) -> None:
        self.spans = spans


def build(workload: Workload, topology: Topology, schedule: str = "1f1b", chunks: int = 2) -> Trainer:
    """``chunks``: stages a rank of the interleaved schedule."""
    plan = plan_of(workload, topology, schedule, chunks)
    return (Asynchronous if plan.versions else Pipeline)(workload, topology, plan)
