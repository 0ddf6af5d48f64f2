"""Horovod's DistributedOptimizer over its own gloo; it all-reduces each gradient as soon as it is computed."""

import os
from collections.abc import Mapping

import horovod.torch as hvd
import torch.distributed as dist
from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
from horovod.runner.http.http_server import RendezvousServer
from torch import Tensor

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.common.optimizer import clip, optimizer
from impls.common.step import accumulate
from impls.common.weights import build_model


class Horovod:
    unmetered = "Horovod's collectives do not go through torch.distributed, so they cannot be counted"

    def __init__(self, workload: Workload, topology: Topology) -> None:
        if workload.element_size < 4:
            raise Unsupported("Horovod does not support bfloat16")
        if device().type == "cuda" and not hvd.nccl_built():
            raise Unsupported("this Horovod was built without NCCL")
        self.workload, self.topology = workload, topology
        _start(topology.dp)
        self.model = build_model(workload)
        self.optimizer = hvd.DistributedOptimizer(
            optimizer(self.model.parameters(), workload),
            named_parameters=self.model.named_parameters(),
            backward_passes_per_step=workload.micro_batches,  # gradients are added; over ranks they are averaged
        )
        hvd.broadcast_parameters(self.model.state_dict(), root_rank=0)

    def backward(self, batch: Batch) -> Tensor:
        loss = accumulate(self.model, batch, self.workload, hvd.rank(), self.topology.dp)
        self.optimizer.synchronize()
        return loss

    def update(self) -> None:
        clip([p.grad for p in self.model.parameters()], self.workload.max_grad_norm)
        with self.optimizer.skip_synchronize():  # backward() has clipped and synchronised
            self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return {name: p.grad.cpu() for name, p in self.model.named_parameters()}

    def parameters(self) -> Mapping[str, Tensor]:
        return {name: p.detach().cpu() for name, p in self.model.named_parameters()}


def _start(ranks: int) -> None:
    """Does the work of ``horovodrun`` for existing processes: the first rank has the rendezvous."""
    if int(os.environ["LOCAL_WORLD_SIZE"]) < ranks:
        raise Unsupported("horovodrun's work for several nodes is not done here: one node only")
    rank, port = dist.get_rank(), [0]
    if rank == 0:
        server = RendezvousServer(verbose=0)
        port = [server.start()]
        server.init(get_host_assignments(parse_hosts(f"localhost:{ranks}"), ranks))
    dist.broadcast_object_list(port)
    place = {"RANK": rank, "SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_SIZE": ranks, "CROSS_RANK": 0, "CROSS_SIZE": 1}
    place |= {"HOSTNAME": "localhost", "CONTROLLER": "gloo", "CPU_OPERATIONS": "gloo", "GLOO_IFACE": "lo"}
    place |= {"GLOO_RENDEZVOUS_ADDR": "127.0.0.1", "GLOO_RENDEZVOUS_PORT": port[0]}
    os.environ.update({f"HOROVOD_{name}": str(value) for name, value in place.items()})
    hvd.init()


def build(workload: Workload, topology: Topology, micro_batches: int = 0) -> Horovod:
    return Horovod(workload.with_(micro_batches=micro_batches) if micro_batches else workload, topology)
