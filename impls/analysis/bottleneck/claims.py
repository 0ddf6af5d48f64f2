"""Published counts and utilisations compared with the count product by product."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from harness.spec import Measurement, assessed
from harness.spec.named import NAMED
from impls.analysis.bottleneck import published as p
from impls.analysis.bottleneck.problem import plain
from impls.analysis.bottleneck.reference import kaplan, korthikanti, narayanan, palm, weights
from impls.analysis.bottleneck.sizes import numbers

Records = Sequence[Mapping[str, Any]]
NEAR = 0.1  # a rule of thumb is within a tenth of the count


def total(sizes: Mapping[str, Any], count: str) -> int:
    return plain(sizes, count=count, parts=False)["total"]


def met(sizes: Mapping[str, Any]) -> int:
    """N: the weights that a token meets in products, those of the head among them."""
    w = weights(sizes)
    return sum(w) - w.norms


class Figure(NamedTuple):
    """A figure in percent, proportional to a published input that was rounded by ``off`` of itself at most, and the
    published figure, rounded to a digit after the point."""

    found: float
    said: float
    off: float

    @property
    def agrees(self) -> bool:
        return abs(self.found - self.said) <= 0.05 + self.found * self.off


def judged(name: str, figures: Mapping[str, Figure], arithmetic: str) -> Measurement:
    worst = max(figures.values(), key=lambda figure: abs(figure.found - figure.said))
    status = "reproduced" if all(figure.agrees for figure in figures.values()) else "contradicted"
    reason = ", ".join(f"{key} {x.found:.1f} % (published {x.said:g})" for key, x in figures.items())
    return assessed(name, status, reason, arithmetic, value=worst.found, law=worst.said, unit="%")


def palm_mfu(records: Records) -> Measurement:
    """PaLM 540B: 238.3K tokens/s on 6,144 TPU v4."""
    sizes = numbers(p.PALM_540B)
    n, tokens = met(sizes), sizes["batch_size"] * sizes["sequence_length"]
    peak, off = 6144 * p.TPU_V4, 0.05 / 238.3
    model = sizes["num_hidden_layers"], sizes["num_attention_heads"], sizes["head_dim"], sizes["sequence_length"]
    each = palm(n, *model)
    found = {
        "with attention": Figure(100 * 238.3e3 * total(sizes, "whole") / tokens / peak, 46.2, off),
        "without": Figure(100 * 238.3e3 * kaplan(n) / peak, 45.7, off),
    }
    return judged(
        "palm_mfu",
        found,
        f"N = {n / 1e9:.2f}e9 from the sizes alone; 6N + 12LHQT = {each / 1e12:.4f} TFLOPs a token, which is the "
        f"count product by product; × 238.3e3 / (6144 × 275e12)",
    )


def palm_hfu(records: Records) -> Measurement:
    """PaLM 540B: HFU 57.8 % with rematerialisation."""
    sizes = numbers(p.PALM_540B)
    tokens = sizes["batch_size"] * sizes["sequence_length"]
    hfu = {c: 100 * 238.3e3 * total(sizes, c) / tokens / (6144 * p.TPU_V4) for c in ("whole", "recomputed")}
    share = (57.8 - hfu["whole"]) / (hfu["recomputed"] - hfu["whole"])
    return assessed(
        "palm_hfu",
        "formula only",
        f"which products are computed again is not published; if all of the layers were, {hfu['recomputed']:.1f} %",
        f"57.8 % is {share:.0%} of the way from no recomputation to that of every layer",
        value=hfu["recomputed"],
        law=57.8,
        unit="%",
    )


def mt_nlg_mfu(records: Records) -> Measurement:
    """MT-NLG 530B on 2,240 A100: 1,920 sequences of 2,048 in 60.1 s."""
    flops = total(p.MT_NLG_530B.sizes(1920), "whole")
    mfu = 100 * flops / 60.1 / (2240 * p.A100)
    return judged(
        "mt_nlg_mfu",
        {"MFU": Figure(mfu, 30.2, 0.05 / 60.1)},
        f"{flops:.4g} FLOPs a step / 60.1 s / (2240 × 312e12), by products",
    )


def megatron_table(records: Records) -> Measurement:
    """Megatron-LM's largest model: 163 TFLOP/s a GPU, 52 % of its peak."""
    gpt = p.MEGATRON_1T
    model = gpt.length, gpt.layers, gpt.hidden, gpt.vocabulary
    hardware, useful = total(gpt.sizes(3072), "recomputed"), total(gpt.sizes(3072), "whole")
    same = (hardware, useful) == (narayanan(3072, *model), korthikanti(3072, *model))
    share = 100 * 163e12 / p.A100
    good = same and round(share) == 52
    return assessed(
        "megatron_table",
        "reproduced" if good else "contradicted",
        f"163 / 312 = {share:.1f} %, of hardware FLOPs: the formula counts the recomputed forward pass. In model "
        f"FLOPs, as MFU is defined since, {share * useful / hardware:.1f} %",
        f"F = 96Bslh²(1 + s/6h + V/16lh) = {hardware:.4g}, product by product the same; without the second forward "
        f"pass {useful:.4g}; a step takes {hardware / 3072 / 163e12:.0f} s",
        value=share,
        law=52.0,
        unit="%",
    )


def selective_mfu(records: Records) -> Measurement:
    """Korthikanti et al.: MFU of four models with selective recomputation."""
    found = {}
    for gpt, batch, gpus, seconds, mfu, _ in p.SELECTIVE:
        flops = total(gpt.sizes(batch), "whole")
        found[f"h {gpt.hidden}"] = Figure(100 * flops / seconds / gpus / p.A100, mfu, 0.005 / seconds)
    return judged("selective_mfu", found, "72BLsh²(1 + s/6h + V/12hL) / seconds / GPUs / 312e12; equal by products")


def selective_hfu(records: Records) -> Measurement:
    """HFU of the same runs. A second QKᵀ and PV take 4Bs²h a layer, a third of attention's 12Bs²h; the published HFU
    follow if s/6h becomes s/3h, which is another 12Bs²h."""
    found, theirs = {}, []
    for gpt, batch, gpus, seconds, _, hfu in p.SELECTIVE:
        peak = seconds * gpus * p.A100 / 100
        found[f"h {gpt.hidden}"] = Figure(total(gpt.sizes(batch), "selective") / peak, hfu, 0.005 / seconds)
        twice = total(gpt.sizes(batch), "whole") + 12 * batch * gpt.length**2 * gpt.hidden * gpt.layers
        theirs.append(f"{twice / peak:.1f}")
    return judged(
        "selective_hfu",
        found,
        f"with 72BLsh²(1 + s/3h + V/12hL), {', '.join(theirs)} %: as published, but it counts the second QKᵀ and PV "
        "three times; 2s/9h counts them once",
    )


def gpt3_total(records: Records) -> Measurement:
    """GPT-3: 3.14e23 FLOPs for 300e9 tokens."""
    sizes = p.GPT3_175B.sizes()
    counted = total(sizes, "whole") / sizes["sequence_length"] * 300e9
    rule = kaplan(174_600_000_000) * 300e9
    return assessed(
        "gpt3_total",
        "reproduced" if abs(counted / 3.14e23 - 1) < NEAR else "contradicted",
        f"{counted:.3g} by products, {counted / 3.14e23 - 1:.1%} more: attention is left out of the published figure",
        f"6 × 174.6e9 × 300e9 = {rule:.3g}",
        value=counted,
        law=3.14e23,
        unit="FLOPs",
    )


def six_per_parameter(records: Records) -> Measurement:
    """6 FLOPs a parameter and token, at a model's own sequence length and beyond."""
    work = {w.name: numbers(w) for w in (*p.PUBLISHED, NAMED["qwen3-0.6b"])}
    gpts = {"gpt-3-175b": p.GPT3_175B.sizes(), "mt-nlg-530b": p.MT_NLG_530B.sizes()}
    off = {}
    for name, sizes in {**gpts, **work}.items():
        for s in sorted({sizes["sequence_length"], 32768}):
            one = {**sizes, "batch_size": 1, "sequence_length": s}
            off[f"{name} at {s:,}"] = s * kaplan(met(one)) / total(one, "whole") - 1
    worst = min(off, key=lambda key: off[key])
    reach = [
        f"s = {met(x) // (18 * x['num_hidden_layers'] * x['num_attention_heads'] * x['head_dim']):,} ({name})"
        for name, x in {**gpts, **work}.items()
    ]
    return assessed(
        "six_per_parameter",
        "reproduced" if abs(off[worst]) <= NEAR else "contradicted",
        "6N with the head and without the embeddings, compared with the count by products: "
        + ", ".join(f"{name} {value:+.1%}" for name, value in off.items()),
        "6N is within a tenth of the count while 12·L·a·d·s < 6N / 9: up to " + ", ".join(reach),
        value=1 + off[worst],
        law=1.0,
    )


def megatron_formula(sizes: Mapping[str, Any]) -> float:
    """num_floating_point_operations of Megatron-LM, transcribed: forward FLOPs × 3. Attention has s/2; a layer of
    experts has no router."""
    b, s, h = sizes["batch_size"], sizes["sequence_length"], sizes["hidden_size"]
    a, g = sizes["num_attention_heads"], sizes["num_key_value_heads"]
    p_, glu = sizes["head_dim"] * a / h, sizes["mlp_matrices"] / 2
    attention = 4 * b * s * h * p_ * (h + h * (g / a) + s / 2)
    if "num_experts" in sizes:
        mlp = 4 * b * s * h * sizes["moe_intermediate_size"] * sizes["num_experts_per_tok"] * glu
    else:
        mlp = 4 * b * s * h * sizes["intermediate_size"] * glu
    return 3 * (sizes["num_hidden_layers"] * (attention + mlp) + 2 * b * s * h * sizes["vocab_size"])


def megatron_causal(records: Records) -> Measurement:
    """Megatron-LM's formula of today compared with the causal count, and both with PaLM's whole one."""
    found, halved = {}, {}
    for work in p.PUBLISHED:
        sizes = numbers(work)
        found[work.name] = megatron_formula(sizes) / total(sizes, "causal") - 1
        halved[work.name] = total(sizes, "whole") / total(sizes, "causal") - 1
    exact = all(abs(value) < 1e-9 for value in found.values())
    worst = max(found, key=lambda name: abs(found[name]))
    return assessed(
        "megatron_causal",
        "reproduced" if exact else "contradicted",
        f"dense models to the FLOP; {worst} {found[worst]:+.2%}, since routers are left out. An MFU in PaLM's "
        "convention is higher by " + ", ".join(f"{value:.1%} ({name})" for name, value in halved.items()),
        "3 × forward, with s/2 in attention and the router's 2·b·s·h·E missing",
        value=1 + found[worst],
        law=1.0,
    )


def deepseek_active(records: Records) -> Measurement:
    """DeepSeek-V3: 671B parameters, 37B of them activated for a token (its config.json)."""
    h, layers, dense, heads, vocabulary = 7168, 61, 3, 128, 129280
    r_q, r, d, d_r, experts, k, f = 1536, 512, 128, 64, 256, 8, 2048
    attention = h * r_q + r_q * heads * (d + d_r) + h * (r + d_r) + r * heads * 2 * d + heads * d * h
    mlp, expert, router, table = 3 * h * 18432, 3 * h * f, h * experts, vocabulary * h
    rest = layers * attention + dense * mlp + (layers - dense) * router + 2 * table
    whole, active = (rest + (layers - dense) * (1 + each) * expert for each in (experts, k))
    mfu = 6 * (active - table) * 1e12 / (180e3 * 3600 * p.H800)
    good = (round(whole / 1e9), int(active / 1e9)) == (671, 37)
    return assessed(
        "deepseek_active",
        "reproduced" if good else "contradicted",
        f"{whole / 1e9:.1f}e9 parameters, {active / 1e9:.2f}e9 active with the embeddings, {(active - table) / 1e9:.2f}"
        "e9 in products; counting every expert would make the FLOPs "
        f"{(whole - table) / (active - table):.1f} × as many",
        f"180K H800 hours for 1e12 tokens are then {mfu:.1%} of the bf16 peak by 6N, attention left out",
        value=active / 1e9,
        law=37.0,
        unit="e9 parameters",
    )


def llama3_total(records: Records) -> Measurement:
    """Llama 3 405B: 3.8e25 FLOPs for 15.6e12 tokens of up to 8,192."""
    model = {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128}
    sizes = {**numbers(p.LLAMA3_70B), **model}
    counts = {
        c: total(sizes, c) / sizes["batch_size"] / sizes["sequence_length"] * 15.6e12 for c in ("whole", "causal")
    }
    return assessed(
        "llama3_total",
        "reproduced" if abs(counts["causal"] / 3.8e25 - 1) < NEAR else "contradicted",
        f"{counts['causal']:.3g} with half of the pairs, {counts['whole']:.3g} with all: the published figure leaves "
        "attention out",
        f"6 × 405e9 × 15.6e12 = {kaplan(405_000_000_000) * 15.6e12:.3g}",
        value=counts["causal"],
        law=3.8e25,
        unit="FLOPs",
    )
