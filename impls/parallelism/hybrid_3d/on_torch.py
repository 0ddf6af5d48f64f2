"""PyTorch's FSDP2 × DTensor × torch.distributed.pipelining: each stage's layers cut by ``parallelize_module``, the rest
over data- and context-parallel ranks by ``fully_shard``, with its ring attention; and pipelines whose stages are whole,
with their replicas in DistributedDataParallel. What it leaves to its user is done here: a tied embedding's sum over two
stages, the norm over all of them, and which positions a rank has."""

from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as checkpoint
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleavedZeroBubble
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import loss_parallel, parallelize_module
from torch.nn.utils import get_total_norm

from harness.spec import Batch, MoeConfig, Topology, Trainer, Unsupported, Workload
from impls.common.cuts import EMBEDDING, HEAD, split
from impls.common.mesh import cut, device, gather, lines, mesh, placed
from impls.common.optimizer import MasterWeights, clip
from impls.common.stages import Stage
from impls.common.weights import TORCH_DTYPES, initial
from impls.engines.torch.pipeline import Pipelining
from impls.engines.torch.ring import ring
from impls.engines.torch.tensor_parallel import PLAN, by_mesh, make_optimizer, whole
from impls.parallelism.hybrid_3d.resharding import Moved
from impls.parallelism.hybrid_3d.stage import LAYOUT, Context
from impls.parallelism.pipeline_parallel.schedules import plan_of

SCHEDULES = {"1f1b": Schedule1F1B, "interleaved_zb": ScheduleInterleavedZeroBubble}


class Composed:
    def __init__(self, workload: Workload, topology: Topology) -> None:
        self.workload, self.topology, self.places = workload, topology, mesh(topology)
        model, rank = workload.model, self.places.get_local_rank("pp")
        self.pp, self.first, self.last = self.places.get_group("pp"), rank == 0, rank == topology.pp - 1
        narrow = TORCH_DTYPES[workload.dtype]
        # FSDP2's recipe: the sharded float32 weights are the masters; the gathered copies are narrow.
        self.replicas = topology.dp * topology.cp
        self.sharded = self.replicas > 1
        dtype = max(narrow, torch.float32, key=lambda d: d.itemsize) if self.sharded else narrow
        layers = split(model.num_hidden_layers, topology.pp)[rank]
        self.module = Stage(model, layers, self.first, self.last).to(device(), dtype)
        self._fill()
        self.context, self.fallback = None, ""
        if topology.cp > 1:
            self.context = Context(workload, topology.cp, self.places.get_local_rank("cp"))
            attend, self.fallback = ring(self.places["cp"], LAYOUT)
            self.context.enter(self.module, attend)
        if topology.tp > 1:
            names = [name for name, _ in self.module.named_modules()]
            plan = {key: style for key, style in PLAN.items() if any(fnmatch(name, key) for name in names)}
            parallelize_module(self.module, self.places["tp"], plan, src_data_rank=None)
        self.tied = model.tie_word_embeddings and topology.pp > 1 and (self.first or self.last)
        if model.tie_word_embeddings and topology.pp == 1:
            self.module.lm_head.weight = self.module.model.embed_tokens.weight
        if self.sharded:
            policy = MixedPrecisionPolicy(param_dtype=narrow, reduce_dtype=narrow)
            among = self.places["dp", "cp"]._flatten("replicas") if self.context else self.places["dp"]
            options = {"mesh": among, "mp_policy": policy, "reshard_after_forward": False}
            for layer in self.module.model.layers.values():
                fully_shard(layer, **options)
            fully_shard(self.module, **options)
        self.weights = {self._canonical(name): p for name, p in self.module.named_parameters()}
        ends = [[line[0], line[-1]] for line in lines(self.places, "pp")]
        self.ends = dist.new_subgroups_by_enumeration(ends)[0] if self.tied else None
        self.optimizer = MasterWeights(self.weights.values(), workload, make_optimizer)
        self.scale = 0.0  # what a token's loss weighs
        part = PipelineStage(self.module, rank, topology.pp, device(), group=self.pp)
        self.schedule = Schedule1F1B(part, workload.micro_batches, self._loss, scale_grads=False)

    def _canonical(self, name: str) -> str:
        return EMBEDDING if name == HEAD and self.workload.model.tie_word_embeddings else name

    def _fill(self) -> None:
        held: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.module.named_parameters():
            held.setdefault(self._canonical(name), []).append(parameter)
        with torch.no_grad():
            for name, full in initial(self.workload):
                for parameter in held.get(name, []):
                    parameter.copy_(full)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") * self.scale

    def backward(self, batch: Batch) -> Tensor:
        mine = cut(batch, self.workload, self.places.get_local_rank("dp"), self.topology.dp)
        mine = [self.context.part(micro) for micro in mine] if self.context else mine
        inputs, labels = placed(Batch(*(torch.cat(parts) for parts in zip(*mine, strict=True))))
        self.scale = self.replicas / int((batch.labels >= 0).sum())
        losses: list[Tensor] = []
        with loss_parallel():
            given = {"target": labels, "losses": losses} if self.last else {}
            self.schedule.step(*([inputs] if self.first else []), **given)
        total = sum((whole(loss).detach().double() for loss in losses), torch.zeros((), device=device()).double())
        dist.all_reduce(total, group=self.pp)
        for parameter in self.weights.values():  # gains' gradients are partial sums
            if isinstance(parameter, DTensor) and parameter.grad.placements != parameter.placements:
                parameter.grad = parameter.grad.redistribute(placements=parameter.placements)
        if self.tied:
            gradient = self.weights[EMBEDDING].grad
            dist.all_reduce(gradient.to_local() if isinstance(gradient, DTensor) else gradient, group=self.ends)
        return total

    def update(self) -> None:
        if self.workload.max_grad_norm:
            counted = {n: p.grad for n, p in self.weights.items() if n != EMBEDDING or self.first}
            norms = [whole(get_total_norm(group)) for group in by_mesh(counted.values())]
            square = torch.stack(norms).float().square().sum()
            dist.all_reduce(square, group=self.pp)
            for gradients in by_mesh(p.grad for p in self.weights.values()):
                clip(gradients, self.workload.max_grad_norm, square.sqrt())
        self.optimizer.step()

    def gradients(self) -> Mapping[str, Tensor]:
        return gather({name: whole(p.grad) for name, p in self.weights.items()}, self.pp)

    def parameters(self) -> Mapping[str, Tensor]:
        masters = zip(self.weights, self.optimizer.masters, strict=True)
        return gather({name: whole(p.detach()) for name, p in masters}, self.pp)

    def _checkpoint(self) -> dict[str, Tensor]:
        """Masters and moments, each under a name of its own, as torch.distributed.checkpoint takes and fills them."""
        found, state = {}, self.optimizer.optimizer.state
        for name, master in zip(self.weights, self.optimizer.masters, strict=True):
            found |= {f"master/{name}": master.detach()}
            found |= {f"{kind}/{name}": tensor for kind, tensor in state[master].items()}
        return found

    def save(self, folder: Path) -> None:
        checkpoint.save(self._checkpoint(), checkpoint_id=folder)

    def load(self, folder: Path) -> None:
        for master in self.optimizer.masters:
            if self.workload.optimizer == "adamw":
                moments = {kind: torch.zeros_like(master) for kind in ("exp_avg", "exp_avg_sq")}
                self.optimizer.optimizer.state[master] = {"step": torch.zeros((), device=device()), **moments}
        checkpoint.load(self._checkpoint(), checkpoint_id=folder)
        with torch.no_grad():
            for parameter, master in zip(self.weights.values(), self.optimizer.masters, strict=True):
                parameter.copy_(master)

    def padding(self) -> int:
        """FSDP2 pads each parameter's first dimension to a multiple of the ranks."""
        sizes = (p.to_local().numel() * self.replicas - p.numel() for p in self.weights.values() if self.sharded)
        return max(0, sum(sizes)) if self.topology.tp == 1 else 0


def build(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
    schedule: str = "1f1b",
) -> Trainer:
    if isinstance(workload.model, MoeConfig):
        raise Unsupported("PyTorch itself has no layer whose experts lie on several ranks")
    if sequence_parallel:
        raise Unsupported(
            "DTensor saves what its products were given, gathered: the naive form of sequence parallelism"
        )
    whole_stages = topology.tp == topology.cp == 1 and not partition
    if whole_stages and (topology.dp > 1 or schedule != "1f1b"):
        rank_of = plan_of(workload, topology, schedule).rank_of
        return Pipelining(workload, topology, SCHEDULES[schedule], rank_of, replicated=True)
    if topology.dp * topology.cp > 1 and not partition:
        raise Unsupported(
            "PyTorch's data parallelism of DTensors is FSDP2, which divides states: the variant mesh_zero1"
        )
    if schedule != "1f1b":
        raise Unsupported("zero-bubble schedules are driven here on whole stages and their replicas alone")
    if resharding:
        return Moved(lambda mesh: Composed(workload, mesh), workload, topology, resharding)
    return Composed(workload, topology)
