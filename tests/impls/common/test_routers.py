"""A router's losses are those of the papers, token by token, and whoever cannot compute them reports it."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import MoeConfig, Topology, Unsupported, Workload
from harness.spec.named import NAMED
from impls.common.data import batch
from impls.common.plain import Plain, options
from impls.common.routers import RouterLoss, slope
from impls.common.stages import Block

EXPERTS, CHOICES = 4, 2
CONFIG = MoeConfig(num_experts=EXPERTS, num_experts_per_tok=CHOICES, router_aux_loss_coef=1.0)


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Logits [3, 5, E], choices [3, 5, k] and labels [3, 5] of sequences of unequal length."""
    x = torch.randn(3, 5, EXPERTS, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([[1, 1, 1, 1, 1], [1, 1, -100, -100, -100], [1, 1, 1, -100, -100]])
    return x, x.topk(CHOICES).indices, labels


def taken(config: MoeConfig, balanced: int = 0) -> float:
    x, chosen, labels = drawn()
    loss = RouterLoss(config)
    loss.balanced = balanced or loss.balanced
    loss.keep(x.requires_grad_(), chosen)
    return float(loss.take(labels).detach())


def balance(sequences: Sequence[int]) -> tuple[int, float]:
    """n and E Σ f_i P_i of the labelled tokens of some sequences, one token after another."""
    x, chosen, labels = drawn()
    tokens = [(b, s) for b in sequences for s in range(5) if labels[b, s] >= 0]
    f, p = [0.0] * EXPERTS, [0.0] * EXPERTS
    for b, s in tokens:
        for expert in range(EXPERTS):
            f[expert] += int(expert in chosen[b, s].tolist()) / CHOICES / len(tokens)
            p[expert] += float(x[b, s].softmax(0)[expert]) / len(tokens)
    return len(tokens), EXPERTS * sum(a * b for a, b in zip(f, p, strict=True))


def test_a_micro_batch_is_balanced_over_its_labelled_tokens() -> None:
    assert taken(CONFIG) == pytest.approx(balance((0, 1, 2))[1])


@pytest.mark.parametrize(("config", "balanced"), [(replace(CONFIG, seq_aux=True), 0), (CONFIG, 1)])
def test_each_sequence_counts_with_its_share_of_the_tokens(config: MoeConfig, balanced: int) -> None:
    each = [balance((sequence,)) for sequence in range(3)]
    assert taken(config, balanced) == pytest.approx(sum(n * loss for n, loss in each) / 10)


def test_a_global_balance_counts_the_choices_of_other_ranks_too() -> None:
    x, chosen, labels = drawn()
    parts = [RouterLoss(replace(CONFIG, global_aux=True), add=lambda _: whole) for _ in range(3)]  # a rank a sequence
    counted = labels[..., None] >= 0
    whole = torch.cat(((counted * F.one_hot(chosen, EXPERTS).sum(-2)).sum((0, 1)), counted.sum((0, 1)))).double()[None]
    total = 0.0
    for rank, loss in enumerate(parts):
        loss.keep(x[rank][None], chosen[rank][None])
        total += float(loss.take(labels[rank][None])) * int(counted[rank].sum())
    assert total / 10 == pytest.approx(balance((0, 1, 2))[1])


def test_the_z_loss_is_the_mean_square_of_the_log_of_the_sum() -> None:
    x, _, labels = drawn()
    values = [float(x[b, s].exp().sum().log()) ** 2 for b in range(3) for s in range(5) if labels[b, s] >= 0]
    config = replace(CONFIG, router_aux_loss_coef=0.0, router_z_loss_coef=0.5)
    assert taken(config) == pytest.approx(0.5 * sum(values) / 10)


def test_tokens_without_a_label_have_no_loss() -> None:
    x, chosen, labels = drawn()
    loss = RouterLoss(replace(CONFIG, router_z_loss_coef=1.0, seq_aux=True))
    loss.keep(x, chosen)
    assert float(loss.take(torch.full_like(labels, -100))) == 0.0


def test_a_slope_has_no_value() -> None:
    x = torch.tensor(3.0, requires_grad=True)
    slope(x * x).backward()
    assert (float(slope(x * x).detach()), float(x.grad or 0)) == (0.0, 6.0)


@pytest.mark.parametrize("name", ["meshed_routed", "meshed_sequences"])
def test_the_dense_model_balances_the_ranks_micro_batches_and_reports_the_cross_entropy(name: str) -> None:
    work, topology = NAMED[name].with_(dtype="fp64", min_length=2), Topology(dp=2)
    given = batch(work, 0)
    found = []
    for micro_batches in (1, 2, 4, 8):
        model = Plain(work.with_(micro_batches=micro_batches), **options(work, topology))
        found.append((float(model.backward(given)), model.gradients()["model.layers.0.mlp.gate.weight"]))
    plain = Plain(work.with_(model=replace(work.model, router_aux_loss_coef=0.0, router_z_loss_coef=0.0)))
    without = float(plain.backward(given)), plain.gradients()["model.layers.0.mlp.gate.weight"]
    for loss, gradient in found:
        assert loss == pytest.approx(without[0])
        torch.testing.assert_close(gradient, found[0][1])
        assert float((gradient - without[1]).norm()) > 1e-3 * float(gradient.norm())


def test_only_a_balance_of_micro_batches_depends_on_the_topology() -> None:
    assert options(NAMED["meshed_routed"], Topology(dp=2)) == {"balanced": 2}
    assert options(NAMED["meshed_routed"], Topology(tp=2)) == {"balanced": 4}
    assert options(NAMED["meshed_global"], Topology(dp=2)) == options(NAMED["meshed_global"], Topology(tp=2))
    assert options(NAMED["meshed_global"], Topology(dp=2)) == {"balanced": 8}
    assert options(NAMED["meshed_sequences"], Topology(dp=2)) == {}
    assert options(NAMED["meshed_experts"], Topology(dp=2)) == {}


def test_a_sequence_of_modules_rejects_routers_with_losses() -> None:
    with pytest.raises(Unsupported, match="a sequence of modules has one loss"):
        Block(NAMED["meshed_routed"].model, 0)
    Block(NAMED["meshed_experts"].model, 0)


def test_a_balance_of_the_batch_is_of_no_sequence_and_of_one_micro_batch() -> None:
    with pytest.raises(ValueError, match="a balance loss is of sequences or of the whole batch"):
        replace(CONFIG, seq_aux=True, global_aux=True)
    reason = NAMED["meshed_global"].with_(micro_batches=2).check(Topology())
    assert reason == "model.global_aux requires one micro-batch: its choices are counted before the backward pass"


@pytest.mark.parametrize("name", ["router_aux_loss_coef", "router_z_loss_coef"])
def test_a_negative_coefficient_is_an_error(name: str) -> None:
    with pytest.raises(ValueError, match=f"model.{name} must be 0 or more and finite, not -1"):
        Workload(model=MoeConfig(**{name: -1.0}))
