"""Adapters of a UNet with exactly one thing broken."""

from collections.abc import Set
from typing import Any

import torch
from torch import Tensor

from harness.spec import Topology, Trainer, Workload
from harness.spec.fault import FROZEN, GRADIENT, LATER_GRADIENT, LOSS, MERGED, REPLICAS, UNMERGED, UPDATE, Fault
from impls.finetuning.diffusion_lora import reference, unet
from impls.finetuning.diffusion_lora.grid import PICTURES
from impls.finetuning.diffusion_lora.shapes import TARGETS


def unet_average_of_another_step(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Averages take the weights as they were before the step."""
    trainer = reference.build(workload, topology, **variant)
    update = trainer.update

    def late() -> None:
        before = {name: p.detach().clone() for name, p in trainer.weights.items()}
        kept = {name: average.clone() for name, average in trainer.averages.items()}
        update()
        d = reference.decay(trainer.steps, trainer.ema)
        for name, average in trainer.averages.items():
            average.copy_(torch.lerp(kept[name], before[name], 1 - d))

    trainer.update = late
    return trainer


def unet_average_without_warm_up(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """d_n is its limit from the first step on."""
    reference.decay = lambda n, limit: limit
    return reference.build(workload, topology, **variant)


def weights_are_merged_for_averages(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A merged model has the last step's adapters, not the averages."""
    trainer = reference.build(workload, topology, **variant)
    merged = trainer.merged

    def last() -> Any:
        averages, trainer.averages = trainer.averages, {}
        found = merged()
        trainer.averages = averages
        return found

    trainer.merged = last
    return trainer


def weight_of_noise_for_v(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """v-prediction has the min-SNR weights of ε-prediction."""
    honest = reference.weights
    reference.weights = lambda a, prediction, gamma: honest(a, "epsilon", gamma)
    return reference.build(workload, topology, **variant)


def weight_of_noise_missing(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """min(SNR, γ), which is the weight of x₀, for errors of ε."""
    reference.weights = lambda a, prediction, gamma: (a / (1 - a)).clamp(max=gamma)
    return reference.build(workload, topology, **variant)


def v_has_the_wrong_sign(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """√(1−ᾱ) x₀ − √ᾱ ε, as in time that runs the other way."""
    honest = reference.target
    reference.target = lambda *arguments: -honest(*arguments)
    return reference.build(workload, topology, **variant)


def noise_of_the_next_timestep(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """ᾱ counts from 1, timesteps from 0."""
    honest = reference.alphas_bar
    reference.alphas_bar = lambda dtype: honest(dtype).roll(-1).index_copy(0, torch.tensor([999]), honest(dtype)[-1:])
    return reference.build(workload, topology, **variant)


def timestep_is_embedded_one_later(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The UNet is told t + 1, the noise is that of t."""
    honest = unet.embedding
    unet.embedding = lambda t, width, dtype: honest(t + 1, width, dtype)
    return reference.build(workload, topology, **variant)


def sines_come_first(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The halves of the timestep's embedding are swapped."""
    honest = unet.embedding

    def swapped(t: Tensor, width: int, dtype: torch.dtype) -> Tensor:
        return honest(t, width, dtype).roll(width // 2, 1)

    unet.embedding = swapped
    return reference.build(workload, topology, **variant)


def adapter_beside_the_targets(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """The output of a gated layer has an adapter too, which no one asked for."""
    more = (*TARGETS, "ff.net.2")
    targets, start = reference.targets, reference.start
    reference.targets = lambda sizes: targets(sizes, more)

    def started(workload: Workload, rank: int) -> dict[str, Tensor]:
        found = dict(start(workload, rank))
        for name, (o, i) in reference.targets(reference.sizes(workload.model)):
            found.setdefault(f"{name}.lora_A.weight", torch.full((rank, i), 2.0**-6))
            found.setdefault(f"{name}.lora_B.weight", torch.full((o, rank), 2.0**-6))
        return found

    reference.start = lambda workload, rank: started(workload, rank).items()
    return reference.build(workload, topology, **variant)


def results_have_no_adapter(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """to_out.0 is left out, as where targets are q, k and v."""
    honest = reference.targets
    reference.targets = lambda sizes: honest(sizes, TARGETS[:-1])
    return reference.build(workload, topology, **variant)


def a_gain_moves(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """A step moves one gain of the UNet by the last place."""
    trainer = reference.build(workload, topology, **variant)
    update, norm = trainer.update, trainer.unet.conv_norm_out.weight

    def thawing() -> None:
        update()
        with torch.no_grad():
            norm[0] = torch.nextafter(norm[0], torch.full_like(norm[0], 9.0))

    trainer.update = thawing
    return trainer


def alpha_of_the_unet_is_lost(
    workload: Workload, topology: Topology, rank: int, alpha: float, **variant: Any
) -> Trainer:
    """s is 1, as where an adapter is loaded from a file without α."""
    return reference.build(workload, topology, rank=rank, alpha=rank, **variant)


def unmerged_at_full_weight(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """B A is taken out in place of s B A."""
    trainer = reference.build(workload, topology, **variant)
    unmerge = trainer.unmerge

    def whole() -> None:
        for layer in trainer.adapted.values():
            layer.s = 1.0
        unmerge()

    trainer.unmerge = whole
    return trainer


def pictures_of_one_rank(workload: Workload, topology: Topology, **variant: Any) -> Trainer:
    """Each rank steps by its own pictures."""
    reference.sum_flat = lambda tensors, group: None
    return reference.build(workload, topology, **variant)


def _planted(
    variant: str, single: Set[str], narrow: Set[str] = frozenset(), topology: str = "dp1", where: str = ""
) -> Fault:
    """``single`` and ``narrow``: the figures in float32 and bfloat16."""
    found = {dtype: figures for dtype, figures in (("fp32", single), ("bf16", narrow)) if figures}
    return Fault(f"diffusion_lora_{variant}", topology, {"parity": found}, where=where, workload=PICTURES)


# Where nothing is said of bfloat16, its rounding hides the fault.
FAULTS = {
    "unet_average_of_another_step": _planted("ema", UPDATE),
    "unet_average_without_warm_up": _planted("ema", UPDATE),
    "weights_are_merged_for_averages": _planted("ema", MERGED),
    "weight_of_noise_for_v": _planted("v_min_snr", GRADIENT | LOSS, GRADIENT | LOSS),
    "weight_of_noise_missing": _planted("min_snr", GRADIENT | LOSS, {"gradient", "loss"}),
    "v_has_the_wrong_sign": _planted("v", GRADIENT | LOSS, GRADIENT | LOSS),
    "noise_of_the_next_timestep": _planted("v", GRADIENT | LOSS),
    "timestep_is_embedded_one_later": _planted("epsilon", GRADIENT | LOSS),
    "sines_come_first": _planted("epsilon", GRADIENT | LOSS, {"gradient", "loss"}),
    # Names that differ have no slope.
    "adapter_beside_the_targets": _planted("epsilon", {"gradient"}, {"gradient"}),
    "results_have_no_adapter": _planted("epsilon", {"gradient"}, {"gradient"}),
    "a_gain_moves": _planted("epsilon", FROZEN, FROZEN),
    "alpha_of_the_unet_is_lost": _planted("epsilon", GRADIENT | LATER_GRADIENT, GRADIENT | LATER_GRADIENT),
    "unmerged_at_full_weight": _planted("epsilon", UNMERGED, UNMERGED),
    "pictures_of_one_rank": _planted("epsilon", GRADIENT | REPLICAS, GRADIENT | REPLICAS, topology="dp2"),
}
