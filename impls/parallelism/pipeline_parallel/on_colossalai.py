"""Colossal-AI's HybridParallelPlugin along pp: its 1F1B and its interleaved schedule. A policy of ours says which
layers a rank keeps and how it runs them; its built-in ones are for classes of Transformers."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from colossalai.booster.plugin import HybridParallelPlugin
from colossalai.pipeline.stage_manager import PipelineStageManager
from colossalai.shardformer.policies.base_policy import ModulePolicyDescription, Policy
from torch import Tensor, nn

from harness.spec import Batch, Spans, Topology, Unsupported, Workload
from impls.common.cuts import EMBEDDING, HEAD
from impls.common.decoder import Decoder, wide
from impls.common.experts import without_experts
from impls.common.mesh import gather
from impls.common.optimizer import optimizer
from impls.common.precision import without_loss_scale
from impls.common.rope import rope_table
from impls.common.watch import in_order, watched
from impls.common.weights import build_model
from impls.engines import colossalai
from impls.parallelism.pipeline_parallel.schedules import plan_of

CHUNKS = {"1f1b": 1, "interleaved": 2}  # of a rank


def forward(
    model: Decoder,
    inputs: Tensor,
    labels: Tensor,
    hidden_states: Tensor | None = None,
    stage_index: tuple[int, int] | None = None,
    *,
    stages: PipelineStageManager,
) -> Tensor | dict[str, Tensor]:
    """Token ids [b, s], or the stage before's activations, to the next stage's input, or of the last stage logits."""
    x = model.model.embed_tokens(inputs) if hidden_states is None else hidden_states
    cos, sin = (table.to(x.dtype) for table in rope_table(x.shape[1], model.config, x.device))
    for layer in model.model.layers[slice(*(stage_index or stages.stage_indices[0]))]:
        x = layer(x, cos, sin)
    return wide(model.lm_head(model.model.norm(x))) if stages.is_last_stage() else {"hidden_states": x}


class StagePolicy(Policy):
    def config_sanity_check(self) -> None: ...

    def preprocess(self) -> nn.Module:
        return self.model

    def postprocess(self) -> nn.Module:
        return self.model

    def module_policy(self) -> dict[type[nn.Module], ModulePolicyDescription]:
        method = partial(forward, stages=self.pipeline_stage_manager)
        return {Decoder: ModulePolicyDescription(method_replacement={"forward": method})}

    def get_held_layers(self) -> list[nn.Module]:
        stages, body = self.pipeline_stage_manager, self.model.model
        found = stages.get_stage_index(stages.distribute_layers(len(body.layers)))
        stages.stage_indices = found if stages.is_interleave else [found]
        held = [layer for start, end in stages.stage_indices for layer in body.layers[start:end]]
        held += [body.embed_tokens] if stages.is_first_stage(ignore_chunk=True) else []
        return held + ([body.norm, self.model.lm_head] if stages.is_last_stage(ignore_chunk=True) else [])

    def get_shared_params(self) -> list[dict[int, Tensor]]:
        if not self.model.config.tie_word_embeddings:
            return []
        ends = (0, self.model.model.embed_tokens), (self.pipeline_stage_manager.num_stages - 1, self.model.lm_head)
        return [{stage: module.weight for stage, module in ends}]


class Pipeline:
    def __init__(self, workload: Workload, topology: Topology, schedule: str) -> None:
        without_experts(workload, "Colossal-AI is given a policy for")
        if workload.dtype == "fp64":
            raise Unsupported("Colossal-AI trains in float32, float16 and bfloat16 only")
        without_loss_scale(workload, "Colossal-AI")
        chunks = CHUNKS[schedule]
        plan = plan_of(workload, topology, schedule, chunks)
        if workload.model.num_hidden_layers % plan.stages:
            raise Unsupported(
                f"Colossal-AI gives the middle stages a layer more where {plan.stages} does not divide "
                f"{workload.model.num_hidden_layers}; the law speaks of the first ones"
            )
        colossalai.start()
        self.workload, self.spans = workload, None
        overlapped = torch.cuda.is_available()
        if schedule == "interleaved" and not overlapped:
            self.fallback = "messages are waited for where they are sent: overlapped, over gloo, a step never ends"
        self.plugin = HybridParallelPlugin(
            tp_size=1,
            pp_size=topology.pp,
            precision=workload.dtype,
            zero_stage=0,
            max_norm=workload.max_grad_norm,
            num_microbatches=workload.micro_batches,
            pp_style=schedule,
            num_model_chunks=chunks,
            overlap_p2p=overlapped,
            custom_policy=StagePolicy(),
        )
        model = build_model(workload, torch.float32)
        self.model, self.optimizer, *_ = self.plugin.configure(model, optimizer(model.parameters(), workload))
        tied = workload.model.tie_word_embeddings
        found = self.model.unwrap().named_parameters()
        self.names = {EMBEDDING if tied and name == HEAD else name: p for name, p in found}
        mine, scheduler = plan.actions[self.plugin.stage_manager.stage], self.plugin.scheduler
        for name, kind in {"forward_step": "F", "backward_step": "B"}.items():
            setattr(scheduler, name, watched(self, getattr(scheduler, name), in_order(mine, kind)))

    def record(self, spans: Spans | None) -> None:
        self.spans = spans

    def backward(self, batch: Batch) -> Tensor:
        scale = self.workload.micro_batches / int((batch.labels >= 0).sum())  # the schedule divides by their number

        def loss(logits: Tensor, micro: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(logits.flatten(0, 1), micro[1].flatten(), reduction="sum") * scale

        found = self.plugin.execute_pipeline(iter([tuple(batch)]), self.model, loss, self.optimizer)["loss"]
        total = torch.zeros((), device=batch.inputs.device) if found is None else found.detach()
        torch.distributed.all_reduce(total, group=self.plugin.pp_group)
        return total

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return self._gathered(lambda parameter: parameter.grad)

    def parameters(self) -> Mapping[str, Tensor]:
        masters = self.optimizer.working_to_master_map if self.workload.dtype == "bf16" else {}
        return self._gathered(lambda parameter: masters.get(parameter, parameter).detach())

    def _gathered(self, value: Callable[[Any], Tensor]) -> Mapping[str, Tensor]:
        return gather({name: value(parameter) for name, parameter in self.names.items()}, self.plugin.pp_group)


def build(workload: Workload, topology: Topology, schedule: str) -> Pipeline:
    return Pipeline(workload, topology, schedule)
