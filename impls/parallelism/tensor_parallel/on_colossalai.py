"""Colossal-AI's HybridParallelPlugin: Shardformer cuts our decoder's layers by the policy below, with its own
vocabulary-parallel embedding, head and loss."""

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from colossalai.booster.plugin import HybridParallelPlugin
from colossalai.shardformer.layer import (
    Linear1D_Col,
    Linear1D_Row,
    VocabParallelEmbedding1D,
    VocabParallelLMHead1D,
    cross_entropy_1d,
)
from colossalai.shardformer.policies.base_policy import (
    ModulePolicyDescription,
    Policy,
    SubModuleReplacementDescription,
)
from torch import Tensor, nn

from harness.spec import Batch, Topology, Unsupported, Workload
from impls.common.decoder import MLP, Attention, Body, Decoder
from impls.common.experts import without_experts
from impls.common.features import without
from impls.common.mesh import device, share
from impls.common.optimizer import optimizer
from impls.common.precision import without_loss_scale
from impls.common.shards import collect
from impls.common.weights import TORCH_DTYPES, build_model
from impls.engines import colossalai

LAYERS = {
    Attention: {"q_proj": Linear1D_Col, "k_proj": Linear1D_Col, "v_proj": Linear1D_Col, "o_proj": Linear1D_Row},
    MLP: {"gate_proj": Linear1D_Col, "up_proj": Linear1D_Col, "down_proj": Linear1D_Row},
    Body: {"embed_tokens": VocabParallelEmbedding1D},
    Decoder: {"lm_head": VocabParallelLMHead1D},
}
VOCABULARY = {"make_vocab_size_divisible_by": 1}  # by default it is padded to a multiple of 64


class DecoderPolicy(Policy):
    """The cuts for our layers' names; its built-in policies are for classes of Transformers."""

    def config_sanity_check(self) -> None: ...

    def preprocess(self) -> nn.Module:
        return self.model

    def postprocess(self) -> nn.Module:
        if self.model.config.tie_word_embeddings:
            self.model.lm_head.weight = self.model.model.embed_tokens.weight
        return self.model

    def module_policy(self) -> dict[type[nn.Module], ModulePolicyDescription]:
        if not self.shard_config.enable_tensor_parallelism:
            return {}
        return {
            layer: ModulePolicyDescription(
                sub_module_replacement=[
                    SubModuleReplacementDescription(name, kind, VOCABULARY if layer in (Body, Decoder) else {})
                    for name, kind in parts.items()
                ]
            )
            for layer, parts in LAYERS.items()
        }


class TensorParallel:
    fallback = "the adapter adds the gradients of QK-norm's gains over the ranks: Shardformer has no policy for them"

    def __init__(self, workload: Workload, topology: Topology) -> None:
        without_experts(workload, "Colossal-AI has a policy here for")
        without(workload, "Colossal-AI's policy here", "qkv_bias", "o_bias", "mlp_bias")
        if workload.dtype == "fp64":
            raise Unsupported("Colossal-AI trains in float32, float16 and bfloat16 only")
        without_loss_scale(workload, "Colossal-AI")
        if topology.dp > 1:
            raise Unsupported("data parallelism is not set up beside it here")
        if workload.model.vocab_size % topology.tp:
            raise Unsupported("its vocabulary-parallel layers pad a vocabulary that the ranks do not divide")
        colossalai.start()
        self.workload, self.topology = workload, topology
        self.plugin = HybridParallelPlugin(
            tp_size=topology.tp,
            pp_size=1,
            precision=workload.dtype,
            zero_stage=0,
            max_norm=workload.max_grad_norm,
            custom_policy=DecoderPolicy(),
            gradient_as_bucket_view=True,  # otherwise a gradient is kept twice
        )
        model = build_model(workload, torch.float32)
        self.model, self.optimizer, *_ = self.plugin.configure(model, optimizer(model.parameters(), workload))
        self.names = dict(self.model.unwrap().named_parameters())
        self.gains = [p for name, p in self.names.items() if "q_norm" in name or "k_norm" in name]

    def backward(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=device(), dtype=torch.float64)
        group = self.plugin.tp_group
        for micro, part in share(batch, self.workload, 0, 1):
            logits = self.model(micro.inputs).flatten(0, 1)
            loss = cross_entropy_1d(
                logits.float(), micro.labels.flatten(), process_group=group, vocab_size=self.workload.model.vocab_size
            )
            loss = loss.mean() * part
            self.optimizer.backward(loss)
            total += loss.detach()
        for gain in self.gains if self.topology.tp > 1 else ():
            dist.all_reduce(gain.grad, group=group)
        return total

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()

    def gradients(self) -> Mapping[str, Tensor]:
        return self._collect(p.grad for p in self.names.values())

    def parameters(self) -> Mapping[str, Tensor]:
        narrow = TORCH_DTYPES[self.workload.dtype].itemsize < 4
        masters = self.optimizer.working_to_master_map if narrow else {}
        return self._collect(masters.get(p, p).detach() for p in self.names.values())

    def _collect(self, held: Iterable[Tensor]) -> Mapping[str, Tensor]:
        return collect(dict(zip(self.names, held, strict=True)), self.plugin.tp_group)


def build(workload: Workload, topology: Topology) -> TensorParallel:
    return TensorParallel(workload, topology)
