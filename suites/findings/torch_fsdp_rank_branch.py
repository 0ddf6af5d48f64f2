"""FSDP2 mixes the weights and gradients of different layers if ranks take different branches.

A user's model takes a branch that depends on the data, each layer is a unit, as FSDP2's recipe says, and the option for
parameters that some ranks do not use is on. A rank gathers and reduces only the units that its own forward pass calls,
and collectives of different layers meet. With the whole model as one unit the option works.
"""

import sys
import tempfile

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard


class Branches(torch.nn.ModuleList):
    def forward(self, branch: int) -> torch.Tensor:
        return self[branch](torch.full((1, 1), branch + 1.0)).sum()


def step(rank: int, units: bool) -> tuple[float, list[list[float]]]:
    """The loss, and the change of each layer's weights by an SGD step; rank 0 uses the first layer, rank 1 the second.
    The weights are 1 in the first layer and 10 in the second."""
    model = Branches(torch.nn.Linear(1, 2, bias=False) for _ in range(2))
    for layer, value in zip(model, (1.0, 10.0), strict=True):
        torch.nn.init.constant_(layer.weight, value)
        if units:
            fully_shard(layer)
    fully_shard(model)
    model.set_reduce_scatter_unused_params(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = [parameter.detach().full_tensor().clone() for parameter in model.parameters()]
    loss = model(branch=rank)
    loss.backward()
    optimizer.step()
    after = [parameter.detach().full_tensor() for parameter in model.parameters()]
    return loss.item(), [(old - new).flatten().tolist() for old, new in zip(before, after, strict=True)]


def train(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=2)
    torch.save([step(rank, units) for units in (False, True)], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    try:
        with tempfile.TemporaryDirectory() as folder:
            torch.multiprocessing.start_processes(train, (folder,), nprocs=2, start_method="fork")
            control, found = torch.load(f"{folder}/0.pt")
        expected = (2.0, [[0.5, 0.5], [1.0, 1.0]])
        if control != expected:
            raise RuntimeError(f"with one unit, loss and steps are {control} instead of {expected}")
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print(f"expected on rank 0 a loss of {expected[0]} and steps of {expected[1]}, as with the model as one unit")
    print(f"found    on rank 0 a loss of {found[0]} and steps of {found[1]} with each layer as a unit")
    print("still there" if found != expected else "gone")
    sys.exit(found != expected)
