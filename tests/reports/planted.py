"""Planted records for the tests of the report: invented figures in the form of a real run's. Never shown to a user."""

import math
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

from harness.spec.finding import KINDS

Record = dict[str, Any]
START = datetime(2026, 3, 14, 9, 26, tzinfo=UTC)
STEPS = 5
BYTES = {"fp32": 4, "bf16": 2}
PSI = 918_400

TOPICS: dict[str, dict[str, Any]] = {
    "data_parallel": {
        "title": "Data parallelism",
        "sources": ["Li et al. 2020, PyTorch Distributed, §3.2", "https://arxiv.org/abs/2006.15704"],
        "variants": ("naive", "bucketed", "no_sync"),
        "engines": ("reference", "torch", "deepspeed", "megatron", "horovod"),
        "topologies": ("dp2", "dp4"),
    },
    "zero": {
        "title": "ZeRO: partitioned optimizer, gradients and parameters",
        "sources": ["Rajbhandari et al. 2020, ZeRO, §5, eq. 1", "§7.2 (traffic)"],
        "variants": ("zero1", "zero2", "zero3"),
        "engines": ("reference", "torch", "deepspeed", "megatron", "fairscale"),
        "topologies": ("dp2", "dp4"),
    },
    "tensor_parallel": {
        "title": "Tensor parallelism",
        "sources": ["Shoeybi et al. 2019, Megatron-LM, §3"],
        "variants": ("column", "row", "attention", "vocabulary"),
        "engines": ("reference", "torch", "deepspeed", "megatron"),
        "topologies": ("tp2", "tp4"),
    },
    "flash_attention": {
        "title": "FlashAttention",
        "sources": ["Dao et al. 2022, alg. 1", "Dao 2023, §3.1"],
        "variants": ("v1", "v2", "causal", "gqa", "varlen"),
        "engines": ("reference", "torch", "sdpa_flash", "flash_attn"),
        "topologies": ("dp1",),
    },
    "preference": {
        "title": "Preference losses",
        "sources": ["Rafailov et al. 2023, eq. 7", "Azar et al. 2023, eq. 17"],
        "variants": ("dpo", "ipo", "kto", "cpo", "simpo", "orpo"),
        "engines": ("reference", "trl"),
        "topologies": ("dp1",),
    },
}
FUNCTIONS = ("flash_attention", "preference")
SKIPS = {
    "horovod": "horovod is not installed: needs horovod>=0.28",
    "fairscale": "fairscale is not installed: needs fairscale>=0.4.13",
    "flash_attn": "needs cuda: this machine has no GPU",
}
SPEED = {"reference": 1.34, "torch": 1.0, "deepspeed": 1.12, "megatron": 1.06, "sdpa_flash": 0.71, "trl": 1.08}
LEAN = {"reference": 1.05, "torch": 1.0, "deepspeed": 0.93, "megatron": 1.08, "sdpa_flash": 0.64, "trl": 1.21}
TRACEBACK = """RuntimeError: rank 1: mat1 and mat2 shapes cannot be multiplied (64x128 and 64x384)
Traceback (most recent call last):
  File "impls/parallelism/tensor_parallel/on_deepspeed.py", line 71, in backward
    loss = self.engine(batch.inputs, labels=batch.labels)
  File "torch/nn/modules/linear.py", line 134, in forward
    return F.linear(input, self.weight, self.bias)
RuntimeError: mat1 and mat2 shapes cannot be multiplied (64x128 and 64x384)
rank 0 waited in all_reduce #14 (group tp)"""


def records(seed: int = 0, gpu: bool = False) -> list[Record]:
    """About 250 cases over five topics, with failures, errors, skips, findings, fallbacks and claims."""
    draw = random.Random(seed)
    out = list(_cards())
    for topic, card in TOPICS.items():
        for variant, topology, dtype, engine in product(
            card["variants"], card["topologies"], ("fp32", "bf16"), card["engines"]
        ):
            if engine == "megatron" and variant in ("zero2", "zero3"):
                continue
            base = _base(topic, variant, engine, topology, dtype, "NVIDIA H100 80GB HBM3" if gpu else "cpu")
            out += [base | measurement for measurement in _case(draw, topic, variant, engine, topology, dtype)]
    out += _claims()
    out += findings()
    for i, record in enumerate(out):
        record["recorded"] = (START + timedelta(seconds=i)).isoformat()
    return out


def run() -> dict[str, Any]:
    return {
        "run": "20260314-0926-planted",
        "started": START.isoformat(),
        "finished": (START + timedelta(minutes=22, seconds=9)).isoformat(),
        "status": "finished",
        "command": "pytest suites/ --ranks 4 --report site",
        "environment": {
            "python": "3.11.9",
            "platform": "Linux-6.8-x86_64",
            "cpu": "AMD EPYC 9654",
            "cores": 16,
            "memory": 128 * 2**30,
            "packages": {
                "horovod": None,
                "torch": "2.13.0",
                "deepspeed": "0.18.2",
                "megatron-core": "0.16.0",
                "trl": "1.16.0",
            },
            "gpus": [],
            "driver": None,
            "commit": "0123456789abcdef",
            "variables": {"ATEN_CPU_CAPABILITY": "avx2", "CUDA_VISIBLE_DEVICES": ""},
        },
    }


def _base(topic: str, variant: str, engine: str, topology: str, dtype: str, device: str) -> Record:
    case = f"{variant}-{engine}-{topology}-{dtype}"
    return {
        "run": run()["run"],
        "case": case,
        "topic": topic,
        "variant": variant,
        "engine": engine,
        "topology": topology,
        "workload": "tiny",
        "dtype": dtype,
        "device": device,
        "law": None,
        "bound": None,
        "direction": "lower",
    }


def measurement(measure: str, quantity: str, value: float | None, unit: str, verdict: str, **more: Any) -> Record:
    """The half of a record that a judge fills in."""
    blank = {"reason": "", "law": None, "bound": None, "direction": "lower", "detail": {}}
    return blank | {"measure": measure, "quantity": quantity, "value": value, "unit": unit, "verdict": verdict} | more


def calibration() -> Record:
    """The measurements behind parity's margin, as a session keeps them."""
    line = {
        "quantity": "gradient slope",
        "dtype": "bf16",
        "runs": 321,
        "largest": 1.25,
        "smallest": 37.9,
        "chance": 0.0,
    }
    detail = {"capabilities": ["avx2"], "seeds": 10, "margin": 3.5, "table": [line]}
    about = dict.fromkeys(("case", "topic", "variant"), "calibration")
    return next(_cards()) | measurement("calibration", "parity", None, "", "pass", detail=detail) | about


def findings() -> list[Record]:
    """A finding of every kind, as a session keeps them; cases show the first."""
    fields = {
        "engine": "deepspeed",
        "title": "the last <micro-batch> is dropped outside its boundary",
        "consequence": "A quarter of each batch is not learned from.",
        "cause": "engine.py:1 compares with the wrong count.",
        "silent": True,
        "default": True,
        "seen": ["deepspeed 0.18.2"],
        "right": ["deepspeed 0.19.0"],
        "since": "deepspeed 0.18",
        "issue": "deepspeedai/DeepSpeed#1",
        "link": "https://github.com/deepspeedai/DeepSpeed/issues/1",
        "public": "names the cause",
        "review": "2999-01-01",
        "needs": [],
        "script": True,
    }
    names = ["deepspeed_boundary", *(f"deepspeed_{kind.replace(' ', '_')}" for kind in KINDS[1:])]
    return [finding(name, fields | {"kind": kind}) for name, kind in zip(names, KINDS, strict=True)]


def finding(name: str, detail: dict[str, Any]) -> Record:
    about = {"topic": "findings", "variant": "findings"}
    return next(_cards()) | measurement("finding", name, None, "", "pass", detail=detail) | about


def _cards() -> Iterator[Record]:
    for topic, card in TOPICS.items():
        detail = {
            "title": card["title"],
            "sources": card["sources"],
            "variants": {name: {} for name in card["variants"]},
            "engines": list(card["engines"]),
        }
        empty = _base(topic, "", "", "", "", "")
        yield empty | measurement("card", "card", None, "", "pass", detail=detail) | {"case": ""}


def _case(draw: random.Random, topic: str, variant: str, engine: str, topology: str, dtype: str) -> Iterator[Record]:
    if engine in SKIPS:
        for measure in ("parity", "memory", "throughput"):
            yield measurement(measure, "", None, "", "skipped", reason=SKIPS[engine])
        return
    if (topic, variant, engine) == ("tensor_parallel", "vocabulary", "deepspeed"):
        yield measurement("parity", "gradient", None, "× floor", "error", reason=TRACEBACK)
        yield measurement("memory", "states", None, "bytes", "error", reason=TRACEBACK)
        return
    yield from _parity(draw, topic, variant, engine, topology, dtype)
    yield from _memory(draw, topic, variant, engine, topology, dtype)
    if topic == "preference":
        curve = [0.693 * math.exp(-step / 40) + abs(draw.gauss(0, 0.004)) for step in range(300)]
        yield measurement("quality", "loss", curve[-1], "nats", "pass", reason="falls", detail={"losses": curve})
    if topic not in FUNCTIONS:
        yield from _traffic(topic, variant, engine, topology)
    if dtype == "bf16" and engine == "deepspeed" and topic == "data_parallel":
        yield measurement(
            "throughput", "step_time", None, "s", "skipped", reason="bf16 on the CPU is emulated: not timed"
        )
    else:
        yield from _throughput(draw, topic, engine, topology)


def _parity(draw: random.Random, topic: str, variant: str, engine: str, topology: str, dtype: str) -> Iterator[Record]:
    wrong = (variant, engine, topology) in (("zero2", "torch", "dp4"), ("no_sync", "deepspeed", "dp4"))
    quantities = ("output", "gradient")
    if topic not in FUNCTIONS:
        quantities = ("gradient", "update", "gradient slope", "update slope", "loss")
    oracle = [6.238 * math.exp(-0.12 * step) for step in range(STEPS)]
    noise = 1e-7 if dtype == "fp32" else 2e-3
    for quantity in quantities:
        value = draw.uniform(0.7, 2.1)
        detail: dict[str, Any] = {
            "error": value * noise,
            "floor": noise,
            "resolution": noise * 4,
            "tensor": "model.layers.2.mlp.down_proj.weight",
        }
        if quantity == "loss":
            detail["oracle_losses"] = oracle
            detail["losses"] = [loss + draw.gauss(0, noise) for loss in oracle]
        verdict, reason = "pass", f"error {value:.2f} × floor, bound 3"
        if wrong and quantity in ("gradient", "gradient slope"):
            value, verdict = 2310.0, "fail"
            reason = "gradient of model.layers.0.self_attn.q_proj.weight is 2310 × the noise floor, allowed 3"
            detail["first_divergence"] = "step 1, model.layers.0.self_attn.q_proj.weight, rank 3, rows 96:128"
            if variant == "no_sync":
                detail["finding"] = "deepspeed_boundary"
        yield measurement(
            "parity", quantity, value, "× floor", verdict, reason=reason, bound=3.0, direction="equal", detail=detail
        )


def _memory(draw: random.Random, topic: str, variant: str, engine: str, topology: str, dtype: str) -> Iterator[Record]:
    ranks, size = int(topology[2:]), 4
    meter = {"meter": "counting allocator"}
    scale = LEAN[engine] * draw.uniform(0.99, 1.01)
    if topic in FUNCTIONS:
        saved = round(scale * (TOPICS[topic]["variants"].index(variant) + 2) * 131_072 * BYTES[dtype])
        yield measurement("memory", "saved", saved, "bytes", "pass", law=saved * 0.99, bound=saved * 1.05, detail=meter)
        yield measurement("memory", "peak", saved * 2.4, "bytes", "pass", detail=meter)
        return
    cut = {"zero1": (1, 1, ranks), "zero2": (1, ranks, ranks), "zero3": (ranks,) * 3}.get(variant, (1, 1, 1))
    names = ("parameters", "gradients", "optimizer")
    parts = {name: PSI * size * n // d for name, n, d in zip(names, (1, 1, 2), cut, strict=True)}
    law = sum(parts.values())
    detail = meter | {"parts": parts | {"other": round(abs(scale - 1) * law)}}
    over = engine == "reference" and variant == "zero3" and topology == "dp4"
    states = round(law * (1.31 if over else 1.0) + abs(scale - 1) * law * 0.01)
    if dtype == "bf16":
        detail["products"] = "no bfloat16 instructions: matrix products are computed in float32 and rounded once"
    if engine == "megatron":
        detail["fallback"] = "no fused optimizer on the CPU: the plain one was used"
    reason = "31 % above 16Ψ/N: full gradients are kept until the update" if over else "within 1 % of the law"
    yield measurement(
        "memory",
        "states",
        states,
        "bytes",
        "fail" if over else "pass",
        law=law,
        bound=law * 1.01,
        reason=reason,
        detail=detail,
    )
    yield measurement("memory", "peak", round(law * 1.6 * scale), "bytes", "pass", detail=meter)


def _traffic(topic: str, variant: str, engine: str, topology: str) -> Iterator[Record]:
    ranks = int(topology[2:])
    law = round(2 * (ranks - 1) / ranks * PSI * 4 * (1.5 if variant == "zero3" else 1))
    half = law // 2
    ops = {"all_reduce": {"calls": 44, "bytes": law}}
    if topic == "zero":
        ops = {"reduce_scatter": {"calls": 9, "bytes": half}, "all_gather": {"calls": 18, "bytes": law - half}}
    padding = 4096 if engine == "deepspeed" else 0
    detail = {"by_op": ops, "padding": padding, "control": 8}
    yield measurement("traffic", "bytes", law + padding, "bytes", "pass", law=law, bound=law + padding, detail=detail)


def _throughput(draw: random.Random, topic: str, engine: str, topology: str) -> Iterator[Record]:
    ratio = SPEED[engine] * draw.uniform(0.98, 1.02)
    fastest = min(SPEED[name] for name in TOPICS[topic]["engines"] if name in SPEED)
    step = 0.021 * ratio / int(topology[2:])
    samples = [step * draw.lognormvariate(0, 0.03) for _ in range(20)]
    ratio_to_fastest = max(1.0, ratio / fastest)
    detail = {
        "samples": samples,
        "low": step * 0.985,
        "high": step * 1.02,
        "tokens_per_second": 256 / step,
        "tflops": 6 * PSI * 256 / step / 1e12,
        "mfu": 0.31 / ratio,
        "minimum_detectable_effect": 0.02,
        "ratio_to_fastest": ratio_to_fastest,
        "fastest": min(TOPICS[topic]["engines"], key=lambda name: SPEED.get(name, math.inf)),
        "rounds": 5,
        "ratios": {},
    }
    verdict = "pass" if not 1 < ratio_to_fastest < 1.02 else "inconclusive"
    reason = "" if verdict == "pass" else "the difference is below the minimum detectable effect of 2 %"
    if draw.random() < 0.02:
        verdict, reason = "invalid", "a foreign process used 38 % of a core inside the window, three times"
    yield measurement("throughput", "step_time", step, "s", verdict, reason=reason, detail=detail)


def _claims() -> list[Record]:
    rows = (
        (
            "zero",
            "stage 3 memory",
            1.9,
            1.88,
            "GB",
            "reproduced",
            "7.5 B parameters on 64 GPUs: 1.9 GB a rank at stage 3",
        ),
        ("zero", "stage 1 saves nothing", 0.39, 0.5, "GiB", "contradicted", "0.39 GB at the base, 0.39 GB at stage 1"),
        ("tensor_parallel", "weak scaling", 0.76, None, "", "out of reach here", "76 % of linear scaling on 512 GPUs"),
        ("flash_attention", "FA2 speed", 230.0, None, "TFLOP/s", "formula only", "up to 230 TFLOP/s on A100"),
    )
    out = []
    for topic, name, law, value, unit, status, text in rows:
        detail = {
            "status": status,
            "text": text,
            "source": "the paper, table 1",
            "arithmetic": "16 × 7.5e9 ÷ 64 = 1.875e9",
        }
        verdict = {"reproduced": "pass", "contradicted": "fail"}.get(status, "skipped")
        reason = "needs 512 GPUs" if verdict == "skipped" else ""
        record = _base(topic, "", "", "", "", "cpu") | {"case": ""}
        out.append(record | measurement("claim", name, value, unit, verdict, law=law, reason=reason, detail=detail))
    return out
