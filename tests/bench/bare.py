"""The bare script beside which the harness's clock is held: no harness, a step and a clock. A line in, times out."""

import os
import sys
import time

import torch

from harness.spec import Topology, Workload
from impls.models.data import batch
from impls.models.plain import build

torch.set_num_threads(1)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # as the harness binds its first rank
trainer = build(Workload(), Topology())
batches = [batch(Workload(), step) for step in range(4)]
for line in sys.stdin:
    times = []
    for index in range(int(line)):
        start = time.perf_counter()
        trainer.backward(batches[index % 4])
        trainer.update()
        times.append(time.perf_counter() - start)
    print(" ".join(map(str, times)), flush=True)
