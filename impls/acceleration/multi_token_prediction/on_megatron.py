"""Megatron-Core's MultiTokenPredictionBlock in its own GPTModel, on the same weights.

Its projection reads [RMSNorm(Emb); RMSNorm(h)], the halves in the other order than equation 21, and is cut by rows
over tp. A depth's loss is the mean over the tokens of a micro-batch that have a target, and these means are averaged;
with ``calculate_per_token_loss`` it is a sum that is divided by the number of the main loss's tokens.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_mtp_block_spec
from megatron.core.transformer import ModuleSpec, TransformerConfig
from megatron.core.transformer.multi_token_prediction import MTPLossLoggingHelper
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from torch import Tensor, nn

from harness.spec import Topology, Unsupported, Workload
from impls.acceleration.multi_token_prediction.plain import initial
from impls.engines.megatron.gpt import Gpt, specification
from impls.engines.megatron.sequence_parallel import Norm, block, check

PROJECTION = "eh_proj.weight"


def swapped(projection: Tensor) -> Tensor:
    """[…, 2h] with the halves exchanged."""
    return torch.cat(projection.chunk(2, -1)[::-1], -1)


def modules(
    config: TransformerConfig, layers: Callable[[], ModuleSpec | TransformerBlockSubmodules]
) -> TransformerBlockSubmodules:
    found = get_gpt_mtp_block_spec(config, layers(), use_transformer_engine=False)
    if config.sequence_parallel:
        for each in found.layer_specs:
            each.submodules.enorm = each.submodules.hnorm = each.submodules.layer_norm = Norm
    return found


class Predicting(Gpt):
    def initial(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's rows of each M_k, whole tensors otherwise."""
        for name, full in initial(self.workload, self.config.mtp_num_layers):
            yield name, swapped(full).chunk(self.tp.size())[self.tp.rank()] if name.endswith(PROJECTION) else full

    def cut(self, part: str) -> int | None:
        return 0 if part.endswith(PROJECTION) else super().cut(part)

    def _canonical(self, fused: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super()._canonical(fused):
            yield name, self._whole(tensor) if name.endswith(PROJECTION) else tensor

    def _whole(self, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(self.tp.size())]
        dist.all_gather(parts, rows.contiguous(), group=self.tp)
        return swapped(torch.cat(parts))

    def losses(self, model: nn.Module, tokens: Tensor, labels: Tensor) -> Tensor:
        return self.forward(model, tokens, labels=labels.clamp(min=0), loss_mask=(labels >= 0).float())

    def observe(self) -> Mapping[str, float]:
        """The losses that its trainers log."""
        found: dict[str, Tensor] = {}
        MTPLossLoggingHelper.track_mtp_metrics(1 / self.workload.micro_batches, 0, None, total_loss_dict=found)
        return {name.removesuffix(" loss"): float(loss) for name, loss in found.items()}


def build(
    workload: Workload,
    topology: Topology,
    depth: int,
    weight: float,
    over_t: bool = False,
    sequence_parallel: bool = False,
    per_token: bool = False,
) -> Predicting:
    if topology.cp > 1:
        raise Unsupported("Megatron-Core's attention has no context parallelism without Transformer Engine")
    if over_t and not per_token:
        raise Unsupported("Megatron-Core divides by a depth's own tokens, unless the loss is per token")
    layers: Callable[[], Any] = specification
    if sequence_parallel:
        check(workload, topology)
        layers = partial(_with_norms, workload.model.num_hidden_layers)
    changes = {"mtp_num_layers": depth, "mtp_loss_scaling_factor": weight, "calculate_per_token_loss": per_token}
    further = partial(modules, layers=layers)
    return Predicting(workload, topology, layers, further=further, sequence_parallel=sequence_parallel, **changes)


def _with_norms(layers: int) -> TransformerBlockSubmodules:
    return block(specification(), layers)


def build_per_token(workload: Workload, topology: Topology, **variant: Any) -> Predicting:
    return build(workload, topology, per_token=True, **variant)
