"""Adapters at the ends: the dense model is the chain rule, ranks agree with it, and merged weights give its outputs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from harness.run.lab import Lab
from harness.spec import Case, ModelConfig, Topology, Unsupported, Workload
from impls.common.data import batch
from impls.common.weights import build_model
from impls.finetuning.lora_head import CARD, shapes
from impls.finetuning.lora_head.plain import Plain, initial

ODD = ModelConfig(97, 24, 40, 2, 4, 2, 6)
TIED = ModelConfig(97, 24, 40, 2, 4, 2, 6, tie_word_embeddings=True)
WORK = Workload(
    "odd_ends", ODD, batch_size=6, micro_batches=3, sequence_length=11, min_length=1, max_grad_norm=0.3, dtype="fp64"
)
VARIANTS = CARD.variants
EMBEDDING, HEAD = f"{shapes.EMBEDDING}.weight", f"{shapes.HEAD}.weight"


def work(variant: str, **changes: Any) -> Workload:
    return WORK.with_(model=TIED if variant == "lora_tied" else ODD, **changes)


def added(variant: str, trained: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the adapters add to the matrices of the model, by their definition; s is 2."""
    found = {}
    if variant != "lora_head":
        found[EMBEDDING] = 2 * (trained[shapes.EMBEDDING_B] @ trained[shapes.EMBEDDING_A]).T
    if variant in ("lora_head", "lora_ends"):
        found[HEAD] = 2 * trained[shapes.HEAD_B] @ trained[shapes.HEAD_A]
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_dense_model_is_the_chain_rule_on_whole_matrices(variant: str) -> None:
    given = work(variant, micro_batches=1)
    trainer, model = Plain(given, False, False, **VARIANTS[variant]), build_model(given)
    trained = {name: tensor.double() for name, tensor in initial(given, **VARIANTS[variant])}
    matrices, update = dict(model.named_parameters()), added(variant, trained)
    with torch.no_grad():
        for name, part in update.items():
            matrices[name] += part
    loss = model(*batch(given, 0))
    loss.backward()
    assert float(trainer.backward(batch(given, 0))) == pytest.approx(loss.item())
    found = trainer.gradients()
    if EMBEDDING in update:
        slope = matrices[EMBEDDING].grad
        assert slope is not None
        torch.testing.assert_close(found[shapes.EMBEDDING_A], 2 * trained[shapes.EMBEDDING_B].T @ slope.T)
        torch.testing.assert_close(found[shapes.EMBEDDING_B], 2 * slope.T @ trained[shapes.EMBEDDING_A].T)
    if HEAD in update:
        slope = matrices[HEAD].grad
        assert slope is not None
        torch.testing.assert_close(found[shapes.HEAD_A], 2 * trained[shapes.HEAD_B].T @ slope)
        torch.testing.assert_close(found[shapes.HEAD_B], 2 * slope @ trained[shapes.HEAD_A].T)
    merged = trainer.merged()
    assert merged.keys() == update.keys()
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, matrices[name].detach())


ENGINES = [("reference", variant) for variant in VARIANTS]
ENGINES += [("peft", variant) for variant in VARIANTS if variant != "lora_tied"]  # which PEFT computes otherwise
WHOLE = ("lora_ends", "lora_tied")  # the others are a part of these
ENGINES = [pytest.param(*each, marks=[] if each[1] in WHOLE else [pytest.mark.slow]) for each in ENGINES]


@pytest.mark.parametrize(("engine", "variant"), ENGINES)
def test_ranks_with_unequal_lengths_compute_what_the_dense_model_does(lab: Lab, engine: str, variant: str) -> None:
    if engine == "peft":
        pytest.importorskip("peft")
    given = work(variant, dtype="fp32", optimizer="adamw", lr=1e-3, weight_decay=0.1, eps=1e-4)
    case = Case(CARD.name, variant, engine, Topology(dp=2), given)
    assert {found.quantity: found.verdict for found in lab.measure("parity", case) if found.verdict != "pass"} == {}


@pytest.mark.parametrize(("variant", "model"), [("lora_head", TIED), ("lora_ends", TIED), ("lora_tied", ODD)])
def test_an_adapter_that_cannot_be_merged_is_refused(variant: str, model: ModelConfig) -> None:
    with pytest.raises(Unsupported, match=r"embedding and head (share one matrix|have a matrix each)"):
        shapes.check(model, VARIANTS[variant]["ends"])
