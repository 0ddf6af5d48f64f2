"""The bare script to which the harness's clock is compared: only a step and a clock. For each line of input, a number
of steps, a fresh process takes that many steps and writes their times."""

import os
import sys
import time

import torch

from harness.spec import Topology, Workload
from impls.common.data import batch
from impls.common.plain import build

torch.set_num_threads(1)
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # like the harness's first rank
build(Workload(), Topology())  # imports its requirements
for line in sys.stdin:
    if os.fork():
        if os.wait()[1]:
            sys.exit("no times: the process failed")
        continue
    trainer = build(Workload(), Topology())
    batches = [batch(Workload(), step) for step in range(4)]
    times = []
    for index in range(int(line)):
        start = time.perf_counter()
        trainer.backward(batches[index % 4])
        trainer.update()
        times.append(time.perf_counter() - start)
    print(" ".join(map(str, times)), flush=True)
    os._exit(0)  # exits at once: nothing remains that would share the core
