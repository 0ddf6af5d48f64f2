"""Multi-token prediction: the dense model is the paper's equations, and the reference keeps to it where the suites do
not look: sequences as short as the chain, ranks without a label, two axes at once, lengths that ranks cannot cut."""

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from harness.run.lab import Lab
from harness.spec import Batch, Case, ModelConfig, Topology, Workload
from impls.acceleration import multi_token_prediction
from impls.acceleration.multi_token_prediction import claims, laws, shapes
from impls.acceleration.multi_token_prediction.plain import Dense, Plain
from impls.acceleration.multi_token_prediction.predictor import shifted
from impls.common.data import IGNORED, batch
from impls.common.rope import rope_table

CARD = multi_token_prediction.CARD
ODD = ModelConfig(97, 24, 40, 2, 4, 2, 6, tie_word_embeddings=True)
WORK = Workload(
    "odd", ODD, batch_size=8, micro_batches=2, sequence_length=11, min_length=1, max_grad_norm=0.3, dtype="fp64"
)
UNTIED = WORK.with_(model=replace(ODD, tie_word_embeddings=False))


def dense(work: Workload = UNTIED, depth: int = 2, weight: float = 0.3, over_t: bool = False) -> Plain:
    return Plain(work, False, False, depth, weight, over_t)


def stepped(trainer: Plain, work: Workload) -> Mapping[str, Tensor]:
    trainer.backward(batch(work, 0))
    return {name: gradient.clone() for name, gradient in trainer.gradients().items()}


def equations(model: Dense, tokens: Tensor, labels: Tensor, weight: float) -> Tensor:
    """(21) to (25) for sequences t_1 … t_{T+1}, token by token; a label that is ignored has no term."""

    def rms(x: Tensor, gain: Tensor) -> Tensor:
        return x / (x.square().mean() + model.config.rms_norm_eps).sqrt() * gain

    depths = [[] for _ in range(len(model.mtp) + 1)]
    for row, targets in zip(tokens, labels, strict=True):
        states = list(model.model(row[None])[0])
        length, embedding = len(row), model.model.embed_tokens.weight
        for k in range(len(model.mtp) + 1):
            if k:
                own = model.mtp[k - 1]
                joined = [
                    torch.cat((rms(states[i], own.hnorm.weight), rms(embedding[row[i + k]], own.enorm.weight)))
                    for i in range(length - k)
                ]
                inputs = torch.stack([own.eh_proj.weight @ x for x in joined])[None]
                tables = (x.double() for x in rope_table(length - k, model.config, tokens.device))
                states = [rms(x, own.norm.weight) for x in own.layer(inputs, *tables)[0]]
            for i, state in enumerate(states):
                if targets[i + k] >= 0:
                    depths[k].append(-(model.lm_head.weight @ state).log_softmax(0)[targets[i + k]])
    main, *later = (torch.stack(each).mean() for each in depths)
    return main + weight / len(later) * sum(later)


def test_the_dense_model_is_the_papers_equations() -> None:
    trainer = dense(depth=3)
    found = stepped(trainer, UNTIED)
    model = trainer.model
    model.zero_grad()
    equations(model, *batch(UNTIED, 0), 0.3).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-13)


def test_the_printed_factor_scales_a_depth_by_its_share_of_the_tokens() -> None:
    own, printed = (stepped(dense(depth=1, over_t=over_t), UNTIED) for over_t in (False, True))
    labels = batch(UNTIED, 0).labels
    share = (labels[:, 1:] >= 0).sum() / (labels >= 0).sum()
    for name in own:
        if name.startswith("mtp."):
            torch.testing.assert_close(printed[name], own[name] * share, rtol=1e-6, atol=0)


def test_a_shift_ends_without_targets() -> None:
    tokens = torch.arange(1, 6)[None]
    found = shifted(Batch(tokens, tokens + 1), 2)
    assert found.inputs.tolist() == [[3, 4, 5, 0, 0]]
    assert found.labels.tolist() == [[4, 5, 6, IGNORED, IGNORED]]
    assert (shifted(Batch(tokens, tokens + 1), 7).labels == IGNORED).all()


@pytest.mark.parametrize(
    ("variant", "topology", "work"),
    [
        # The third depth has no target in any sequence; and one rank has no label at all.
        ("mtp3", "dp2", WORK.with_(name="short", sequence_length=3)),
        ("mtp2", "dp2", WORK.with_(name="half", unlabelled=4)),
        pytest.param("mtp2_over_t", "dp2", WORK, marks=pytest.mark.slow),
        ("mtp2_sp", "dp2tp2", WORK),
        pytest.param("mtp2", "tp2cp2", WORK.with_(name="cut", sequence_length=10), marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_the_reference_computes_what_the_dense_model_does_and_keeps_the_laws(
    lab: Lab, variant: str, topology: str, work: Workload
) -> None:
    case = Case(CARD.name, variant, "reference", Topology.parse(topology), work)
    measurements = [each for measure in ("parity", "trace") for each in lab.measure(measure, case)]
    assert [measurement.reason for measurement in measurements if measurement.verdict != "pass"] == []
    assert measurements[0].detail["floor"] < 1e-12
    sent, *_ = lab.measure("traffic", case)
    assert (sent.quantity, sent.value) == ("bytes", sent.law), sent.reason


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_depth_adds_a_layer_and_a_projection_but_no_embedding_and_no_head(depth: int) -> None:
    trainer = dense(depth=depth)
    number = sum(parameter.numel() for parameter in trainer.model.parameters())
    h, layer = ODD.hidden_size, sum(prod(shape) for _, shape in ODD.layer_shapes())
    assert shapes.parameters(ODD) == 2 * h * h + 3 * h + layer
    assert number == UNTIED.model.parameters + depth * shapes.parameters(ODD)
    assert laws.on_a_rank(UNTIED, 1, depth) == number


def test_data_parallel_ranks_send_the_gradients_of_the_depths_too() -> None:
    sent = laws.traffic(UNTIED, Topology(dp=4), depth=2)
    assert sent == 2 * 3 / 4 * 8 * (UNTIED.model.parameters + 2 * shapes.parameters(ODD))
    assert laws.traffic(UNTIED, Topology(), depth=2) is None


def flops(depth: int) -> int:
    trainer, counter = dense(depth=depth), FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        trainer.backward(batch(UNTIED, 0))
    return counter.get_total_flops()


@pytest.mark.parametrize("depth", [2, 3])
def test_flops_of_the_depths_are_those_of_the_law(depth: int) -> None:
    """Counted without causality: the law's T − k query positions each see all T − k keys, and half of that counts."""
    lengths = [UNTIED.sequence_length - k for k in range(2, depth + 1)]
    masked = sum(6 * UNTIED.batch_size * ODD.num_attention_heads * ODD.head_dim * s * s for s in lengths)
    assert flops(depth) - flops(1) == laws.flops(UNTIED, depth) - laws.flops(UNTIED, 1) + masked


def test_the_claims_are_arithmetic_on_deepseeks_sizes() -> None:
    size, speed = claims.module_size([]), claims.speed([])
    assert size.detail["status"] == speed.detail["status"] == "formula only"
    assert size.value == pytest.approx(size.law, rel=0.02)
    assert speed.value == pytest.approx(speed.law, rel=0.02)
    assert claims.drafting([]).detail["status"] == claims.acceptance([]).detail["status"] == "out of reach here"
    # 61 layers, three of them dense, and the embeddings: the same count gives the published 671 B.
    dense_layer = claims.layer(0) + 3 * claims.H * 18432 - claims.EXPERTS * claims.H
    whole = 58 * claims.layer(claims.EXPERTS + claims.SHARED) + 3 * dense_layer + 2 * claims.V * claims.H
    assert whole == pytest.approx(671e9, rel=1e-3)
