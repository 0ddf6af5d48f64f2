"""DeepSpeed's PipelineEngine over data-parallel pipelines, with its ZeRO stage 1 and its universal checkpoint; and
its engine around our decoder with its MoE layers, beside data parallelism."""

import contextlib
import io
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path

import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from torch import Tensor, nn, no_grad, stack

from harness.spec import MoeConfig, Topology, Trainer, Unsupported, Workload
from impls.common.deepspeed import Engine, configuration, deepspeed
from impls.common.experts import Experts as Dense
from impls.common.mesh import device, mesh
from impls.common.optimizer import optimizer
from impls.common.weights import TORCH_DTYPES, build_model
from impls.parallelism.expert_parallel.on_deepspeed import Expert
from impls.parallelism.hybrid_3d.experts import Experts
from impls.parallelism.hybrid_3d.meshes import meshes
from impls.parallelism.hybrid_3d.moved import Moved
from impls.parallelism.pipeline_parallel.on_deepspeed import Pipeline
from impls.parallelism.zero.on_deepspeed import section

TAG = "saved"


class Saved(Pipeline):
    def save(self, folder: Path) -> None:
        # What the converter asks the model for: which weights more stages than one have.
        self.engine.module.universal_checkpoint_info = {"pipeline_replicated_parameter_patterns": ["tied_modules"]}
        self.engine.save_checkpoint(str(folder), tag=TAG)
        dist.barrier()
        if dist.get_rank() == 0:
            options = {"num_extract_workers": 1, "num_merge_workers": 1, "keep_temp_folder": False, "strict": True}
            folders = {"input_folder": str(folder / TAG), "output_folder": str(folder / "universal")}
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                ds_to_universal.main(Namespace(**folders, **options, inject_missing_state=False))
        self.engine.destroy()
        # Hooks of what the last stage computed hold the engine, unseen by the garbage collector.
        self.engine.loss, self.engine.pipe_buffers = None, {}

    def load(self, folder: Path) -> None:
        self.engine.load_checkpoint(str(folder), tag="universal")


class Routed(nn.Module):
    """DeepSpeed's layer in the place of a dense one, with its weights."""

    def __init__(self, dense: Dense, experts: Experts, workload: Workload, ep: int) -> None:
        super().__init__()
        model = workload.model
        self.moe = MoE(
            model.hidden_size,
            Expert(model.hidden_size, model.moe_intermediate_size),
            num_experts=model.num_experts,
            ep_size=ep,
            k=model.num_experts_per_tok,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,  # or it adds noise to the second choice
        ).to(device(), TORCH_DTYPES[workload.dtype])
        layer = self.moe.deepspeed_moe
        self.gate, self.each = layer.gate.wg.weight, layer.experts.deepspeed_experts
        with no_grad():
            self.gate.copy_(dense.gate.weight)
            for kind in ("gate_up", "down"):
                part = experts.part(f".{kind}_proj", getattr(dense.experts, f"{kind}_proj"))
                for expert, weight in zip(self.each, part, strict=True):
                    getattr(expert, kind).weight.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.moe(x)[0]


class ExpertParallel(Engine):
    def __init__(self, workload: Workload, topology: Topology) -> None:
        if topology.tp * topology.pp > 1 or workload.dtype != "fp32":
            raise Unsupported("DeepSpeed's MoE layers are set up here beside data parallelism alone, in float32")
        self.workload, self.topology, self.rank = workload, topology, dist.get_rank()
        deepspeed.init_distributed(dist_init_required=False)
        self.experts = Experts(mesh(topology), topology)
        self.model = build_model(workload)
        for layer in self.model.model.layers:
            layer.mlp = Routed(layer.mlp, self.experts, workload, topology.ep)
        groups = split_params_into_different_moe_groups_for_optimizer(
            {"params": list(self.model.parameters()), "name": "all"}
        )
        self.engine, *_ = deepspeed.initialize(
            model=self.model,
            optimizer=optimizer(groups, workload),
            config=configuration(workload, topology, {"stage": 0}),
            dist_init_required=False,
        )

    def _whole(self, value: Callable[[nn.Parameter], Tensor]) -> Mapping[str, Tensor]:
        found = {name: value(p) for name, p in self.model.named_parameters() if ".mlp." not in name}
        for index, layer in enumerate(self.model.model.layers):
            prefix = f"model.layers.{index}.mlp."
            found[f"{prefix}gate.weight"] = value(layer.mlp.gate)
            for kind in ("gate_up", "down"):
                name, mine = f"{prefix}experts.{kind}_proj", [getattr(each, kind).weight for each in layer.mlp.each]
                found[name] = self.experts.whole(name, stack([value(p) for p in mine]))
        return {name: tensor.detach().cpu() for name, tensor in found.items()}

    def gradients(self) -> Mapping[str, Tensor]:
        return self._whole(lambda p: p.grad)

    def parameters(self) -> Mapping[str, Tensor]:
        return self._whole(lambda p: p)


def build(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
) -> Trainer:
    if sequence_parallel or max(mesh.tp for mesh in meshes(topology, resharding)) > 1:
        raise Unsupported(
            "DeepSpeed's PipelineModule has no tensor-parallel layers; they are Megatron-DeepSpeed's, whose repository "
            "cannot be installed"
        )
    if isinstance(workload.model, MoeConfig):
        if resharding:
            raise Unsupported("DeepSpeed's universal checkpoints of experts are not driven here")
        if partition:
            raise Unsupported("DeepSpeed's MoE layers are set up here without ZeRO")
        return ExpertParallel(workload, topology)
    if topology.cp > 1:
        raise Unsupported("DeepSpeed's PipelineModule has no ranks for parts of a sequence")
    if workload.dtype == "fp64":
        raise Unsupported("DeepSpeed's engine trains in float32, float16 and bfloat16 only")
    zero = section(workload, 1) if partition else {"stage": 0}
    if resharding:
        universal = {"load_universal": True}
        return Moved(lambda mesh: Saved(workload, mesh, zero, checkpoint=universal), workload, topology, resharding)
    return Pipeline(workload, topology, zero)
