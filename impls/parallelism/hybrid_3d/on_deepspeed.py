"""DeepSpeed's PipelineEngine over data-parallel pipelines, with its ZeRO stage 1 and its universal checkpoint; and
its MoE layers beside data parallelism."""

import contextlib
import io
from argparse import Namespace
from pathlib import Path

import torch.distributed as dist
from deepspeed.checkpoint import ds_to_universal

from harness.spec import MoeConfig, Topology, Trainer, Unsupported, Workload
from impls.common.mesh import mesh
from impls.engines.deepspeed.experts import ExpertParallel
from impls.engines.deepspeed.pipeline import Pipeline
from impls.engines.deepspeed.zero import section
from impls.parallelism.hybrid_3d.resharding import Moved, meshes
from impls.parallelism.hybrid_3d.stage import Experts

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


def build(
    workload: Workload,
    topology: Topology,
    sequence_parallel: bool = False,
    partition: bool = False,
    resharding: str = "",
    schedule: str = "1f1b",
) -> Trainer:
    if schedule != "1f1b":
        raise Unsupported("DeepSpeed's PipelineModule has no schedule whose backward pass comes in two parts")
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
        return ExpertParallel(workload, topology, Experts(mesh(topology), topology))
    if topology.cp > 1:
        raise Unsupported("DeepSpeed's PipelineModule has no ranks for parts of a sequence")
    zero = section(workload, 1) if partition else {"stage": 0}
    if resharding:
        universal = {"load_universal": True}
        return Moved(lambda mesh: Saved(workload, mesh, zero, checkpoint=universal), workload, topology, resharding)
    return Pipeline(workload, topology, zero)
