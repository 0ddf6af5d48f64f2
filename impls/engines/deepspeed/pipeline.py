"""DeepSpeed's PipelineModule and PipelineEngine, which run 1F1B. ``train_batch`` includes the optimizer's step, so the
step's instruction waits until :meth:`update`."""

import json
from collections.abc import Mapping
from types import MethodType
from typing import Any

import deepspeed
import torch
import torch.nn.functional as F
from deepspeed.pipe import LayerSpec, PipelineModule, TiedLayerSpec
from deepspeed.runtime.pipe import schedule as instructions
from deepspeed.runtime.pipe.topology import PipeDataParallelTopology
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_grad
from torch import Tensor, nn

from harness.spec import Batch, Spans, Topology, Unsupported, Workload
from impls.common.cuts import EMBEDDING
from impls.common.decoder import RMSNorm
from impls.common.mesh import device, gather, mesh, share
from impls.common.optimizer import optimizer
from impls.common.precision import without_loss_scale
from impls.common.stages import Block
from impls.common.watch import in_order, watched
from impls.common.weights import TORCH_DTYPES, initial
from impls.engines.deepspeed.engine import configuration


def project(embedding: nn.Embedding, x: Tensor) -> Tensor:
    """The head of a model with a tied embedding."""
    return F.linear(x, embedding.weight)


class Pipeline:
    """``zero`` is the configuration's section ``zero_optimization``, over the data-parallel ranks; ``sections`` are
    further ones."""

    def __init__(self, workload: Workload, topology: Topology, zero: Mapping[str, Any], **sections: Any) -> None:
        if workload.dtype == "fp64":
            raise Unsupported("DeepSpeed's engine trains in float32, float16 and bfloat16 only")
        without_loss_scale(workload, "DeepSpeed")
        self.workload, self.topology = workload, topology
        self.places = mesh(topology)
        deepspeed.init_distributed(dist_init_required=False)  # uses the existing process group
        config = workload.model
        size = (config.vocab_size, config.hidden_size)
        first, last = LayerSpec(nn.Embedding, *size), LayerSpec(nn.Linear, *size[::-1], bias=False)
        if config.tie_word_embeddings:
            first = TiedLayerSpec("embedding", nn.Embedding, *size)
            last = TiedLayerSpec("embedding", nn.Embedding, *size, forward_fn=project)
        layers = [LayerSpec(Block, config, layer) for layer in range(config.num_hidden_layers)]
        norm = LayerSpec(RMSNorm, config.hidden_size, config.rms_norm_eps)
        module = PipelineModule(
            layers=[first, *layers, norm, last],
            topology=PipeDataParallelTopology(topology.pp, topology.dp),
            loss_fn=self._loss,
            partition_method="type:Block",  # the same number of layers on each rank
        ).to(device(), TORCH_DTYPES[workload.dtype])
        names = {f"{1 + i}.layer.": f"model.layers.{i}." for i in range(config.num_hidden_layers)}
        names |= {"0.": "model.embed_tokens.", f"{1 + len(layers)}.": "model.norm.", f"{2 + len(layers)}.": "lm_head."}
        names["tied_modules.embedding."] = EMBEDDING.removesuffix("weight")
        self.names: dict[str, nn.Parameter] = {}
        for name, parameter in module.named_parameters():
            old = next(old for old in names if name.startswith(old))
            self.names[names[old] + name.removeprefix(old)] = parameter
        with torch.no_grad():
            for name, full in initial(workload):
                if name in self.names:
                    self.names[name].copy_(full)
        settings = configuration(workload, topology, zero) | sections
        self.configuration = json.dumps(settings, default=str)
        self.engine, *_ = deepspeed.initialize(
            model=module,
            optimizer=optimizer(module.parameters(), workload),
            config=settings,
            dist_init_required=False,
        )
        known = self.engine._INSTRUCTION_MAP
        self.step = MethodType(known[instructions.OptimizerStep], self.engine)
        self.engine._INSTRUCTION_MAP = {**known, instructions.OptimizerStep: lambda engine: None}
        self.spans: Spans | None = None
        stage = self.places.get_local_rank("pp")
        for instruction, kind in {instructions.ForwardPass: "F", instructions.BackwardPass: "B"}.items():
            order = in_order([(kind, stage, micro) for micro in range(workload.micro_batches)], kind)
            self.engine._INSTRUCTION_MAP[instruction] = watched(self, known[instruction], order)

    def _loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss of a micro-batch; the engine averages it over micro-batches and over the data-parallel ranks."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum") * self.scale

    def record(self, spans: Spans | None) -> None:
        self.spans = spans

    def backward(self, batch: Batch) -> Tensor:
        counted = int((batch.labels >= 0).sum())
        self.scale = self.workload.micro_batches * self.topology.dp / counted
        micro_batches = share(batch, self.workload, self.places.get_local_rank("dp"), self.topology.dp)
        return self.engine.train_batch(iter([(micro.inputs, micro.labels) for micro, _ in micro_batches])).detach()

    def update(self) -> None:
        self.step()

    def gradients(self) -> Mapping[str, Tensor]:
        # Its bf16 optimizer may accumulate and clip in bf16; what it hands out of them is in float32.
        kept = getattr(self.engine.optimizer, "grad_acc_dtype", None)
        found = {name: safe_get_full_grad(parameter).to(kept) for name, parameter in self.names.items()}
        return gather(found, self.places.get_group("pp"))

    def parameters(self) -> Mapping[str, Tensor]:
        # The engine keeps float32 masters of narrower weights, and none of float32 weights.
        narrow = self.workload.dtype == "bf16"
        found = {name: safe_get_full_fp32_param(p) if narrow else p for name, p in self.names.items()}
        return gather(found, self.places.get_group("pp"))
