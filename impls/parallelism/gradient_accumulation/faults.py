"""Gradient accumulation with exactly one thing broken."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.spec import Batch, Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, TRAINED, Fault
from harness.spec.named import NAMED
from impls.common.mesh import share
from impls.parallelism.gradient_accumulation import reference


def tokens_of_its_own_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank normalises by its own tokens, as if all ranks had as many."""

    def weights(labels: list[Tensor]) -> Tensor:
        counts = torch.stack([(part >= 0).sum() for part in labels])
        return counts.double() / counts.sum() / dist.get_world_size()

    reference.token_weights = weights
    return reference.build(workload, topology, **variant)


def graphs_of_all_micro_batches(workload: Workload, topology: Topology, by_tokens: bool = True) -> Trainer:
    """All forward passes come before the first backward pass, and so all activations are kept at once."""

    class Whole(reference.Accumulation):
        def backward(self, batch: Batch) -> Tensor:
            micro_batches = [micro for micro, _ in share(batch, self.workload, self.rank, self.ranks)]
            weights = self.weights([micro.labels for micro in micro_batches])
            losses = [self.model(*micro) * weight for micro, weight in zip(micro_batches, weights, strict=True)]
            for index, loss in enumerate(losses):
                with self._sending(index == len(losses) - 1):
                    loss.backward()
            for bucket in self.buckets:
                bucket.wait()
            return torch.stack(losses).detach().sum() * self.ranks

    return Whole(workload, by_tokens)


FAULTS = {
    "tokens_of_its_own_rank": Fault(
        "accumulate_tokens",
        "dp2",
        {"parity": {"fp32": GRADIENT | TRAINED, "bf16": {"update"}}},
        where="step 1, gradient of ",
        # Where there are few sequences, ranks have more unequal numbers of tokens.
        workload=NAMED["unequal"].with_(batch_size=4, micro_batches=2),
    ),
    "graphs_of_all_micro_batches": Fault(
        "accumulate_tokens", "dp2", {"memory": {"fp32": {"activations"}}}, workload="accumulated"
    ),
}
