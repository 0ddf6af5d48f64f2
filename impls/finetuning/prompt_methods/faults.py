"""Methods that adapt a frozen model, each with exactly one thing broken."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import GRADIENT, LOSS, REPLICAS, Fault
from impls.finetuning.prompt_methods import inserted, prompts, reference


def last_virtual_token_labelled(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The last virtual token predicts the first token of the text."""

    def forward(soft: prompts.SoftPrompt, tokens: Tensor, labels: Tensor) -> Tensor:
        x = soft.base.model.embed_tokens(tokens)
        P = soft.prompt_encoder().to(x.dtype)  # noqa: N806
        x = torch.cat((P.expand(len(x), -1, -1), x), dim=1)
        y = prompts.body(soft.base, x, first=0)[:, len(P) - 1 :]
        return prompts.cross_entropy(soft.base.lm_head(y), torch.cat((tokens[:, :1], labels), dim=1))

    prompts.SoftPrompt.forward = forward
    return reference.build(workload, topology, **variant)


def positions_not_shifted(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The text begins at position 0, as if there were no prefix."""
    honest = prompts.body
    prompts.body = lambda model, x, first: honest(model, x, 0)
    return reference.build(workload, topology, **variant)


def prefix_of_the_next_layer(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Layer l reads the prefix of layer l + 1."""
    layers, honest = workload.model.num_hidden_layers, prompts.PromptEncoder.forward

    def rows(encoder: prompts.PromptEncoder) -> Tensor:
        made = honest(encoder)
        return made.view(len(made), layers, -1).roll(-1, dims=1).flatten(1)

    prompts.PromptEncoder.forward = rows
    return reference.build(workload, topology, **variant)


def rope_on_the_prefix(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The keys of a prefix are rotated as those of tokens at positions 0 … T − 1."""
    honest = prompts.attend

    def attend(prefix: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = prefix
        cos, sin = (t.to(keys.dtype) for t in prompts.rope_table(keys.shape[1], workload.model, keys.device))
        first, second = keys.chunk(2, dim=-1)
        turned = keys * cos + torch.cat((-second, first), dim=-1) * sin
        return honest(torch.stack((turned, values)), query, key, value)

    prompts.attend = attend
    return reference.build(workload, topology, **variant)


def output_scaled(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """l_ff rescales what down_proj gives in place of what it takes."""

    def forward(layer: inserted.ScaledInput, x: Tensor) -> Tensor:
        y = layer.base(x)
        return (layer.ia3_l[: y.shape[-1]] * y).to(y.dtype)

    inserted.ScaledInput.forward = forward
    return reference.build(workload, topology, **variant)


def merged_into_rows(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Merging puts l_ff on the rows of down_proj, as on those of the keys' projection."""
    inserted.ScaledInput.factor = lambda layer: layer.ia3_l[: layer.base.out_features, None]
    return reference.build(workload, topology, **variant)


def no_residual(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """An adapter replaces its input instead of adding to it."""

    def forward(adapter: inserted.Adapter, x: Tensor) -> Tensor:
        down, b, up, c = (p.to(x.dtype) for p in adapter.parameters())
        return F.linear(F.gelu(F.linear(x, down, b)), up, c)

    inserted.Adapter.forward = forward
    return reference.build(workload, topology, **variant)


def base_thawed(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A step moves one norm of the base by a millionth, or in bfloat16 by a digit."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def thawing() -> None:
        update()
        with torch.no_grad():
            trainer.model.base.model.norm.weight[0] *= 1 + 2**-7 if workload.dtype == "bf16" else 1 + 1e-6

    trainer.update = thawing
    return trainer


def mlp_not_trained(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Of a reparametrised prefix only P' learns."""
    trainer = reference.build(workload, topology, **variant)
    backward = trainer.backward

    def without(batch: object) -> Tensor:
        loss = backward(batch)
        for p in trainer.model.prompt_encoder.transform.parameters():
            p.grad.zero_()
        return loss

    trainer.backward = without
    return trainer


def one_rank_s_prompt(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank steps by its own share of the batch."""
    reference.sum_flat = lambda tensors, group: None
    return reference.build(workload, topology, **variant)


BOTH = ("fp32", "bf16")
SHARP = {"parity": dict.fromkeys(BOTH, GRADIENT)}
FAULTS = {
    "last_virtual_token_labelled": Fault(
        "prompt_tuning", "dp1", {"parity": {"fp32": GRADIENT | LOSS, "bf16": frozenset({"gradient"})}}
    ),
    "positions_not_shifted": Fault("prefix_tuning", "dp1", SHARP),
    "prefix_of_the_next_layer": Fault("prefix_tuning", "dp1", SHARP),
    "rope_on_the_prefix": Fault("prefix_tuning", "dp1", SHARP),
    "output_scaled": Fault("ia3", "dp1", SHARP),
    "merged_into_rows": Fault("ia3", "dp1", {"parity": dict.fromkeys(BOTH, frozenset({"merged"}))}),
    "no_residual": Fault("bottleneck_adapters", "dp1", SHARP),
    "base_thawed": Fault("p_tuning", "dp1", {"parity": dict.fromkeys(BOTH, frozenset({"frozen"}))}),
    "mlp_not_trained": Fault("prefix_tuning_mlp", "dp1", SHARP),
    "one_rank_s_prompt": Fault("prompt_tuning", "dp2", {"parity": dict.fromkeys(BOTH, GRADIENT | REPLICAS)}),
}
