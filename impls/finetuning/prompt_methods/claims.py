"""Published shares of trained parameters, by the arithmetic of the models that they name and by this run's states."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed
from harness.spec.named import NAMED
from impls.finetuning.prompt_methods.shapes import parameters

Records = Sequence[Mapping[str, Any]]
BERT, BERT_WIDTH, BERT_LAYERS = 330e6, 1024, 24  # BERT-LARGE, as Houlsby et al. count it (section 3.2)
GPT2, GPT2_WIDTH, GPT2_LAYERS = 345e6, 1024, 24  # GPT-2 MEDIUM, of Li & Liang's table 1
GLUE_SIZES = (8, 64, 256)  # the m that section 3.2 tries
TEN = 10  # Li & Liang's prefix for table-to-text


def adapters(records: Records) -> Measurement:
    """2md + d + m, twice a layer, beside BERT-LARGE."""

    def count(m: int) -> int:
        return BERT_LAYERS * 2 * (2 * m * BERT_WIDTH + BERT_WIDTH + m)

    shares = {m: count(m) / BERT for m in GLUE_SIZES}
    arithmetic = "24 · 2 · (2 m 1024 + 1024 + m) of 330 M: " + ", ".join(f"m = {m}: {s:.2%}" for m, s in shares.items())
    reason = f"{arithmetic}; 3.6 % is an average of sizes chosen for each task, with trained layer norms"
    reason += held(records, "bottleneck_adapters", method="bottleneck", m=8)
    return assessed("adapter_share", "formula only", reason, arithmetic, value=shares[64], law=0.036)


def prefix(records: Records) -> Measurement:
    """2 L T d beside GPT-2 MEDIUM."""
    count = 2 * GPT2_LAYERS * TEN * GPT2_WIDTH
    arithmetic = f"2 · 24 · 10 · 1024 = {count:,} of 345 M: {count / GPT2:.2%}"
    reason = f"{arithmetic} with T = 10; 0.1 % needs T ≤ 7" + held(records, "prefix_tuning", method="prefix", tokens=5)
    return assessed("prefix_share", "formula only", reason, arithmetic, value=count / GPT2, law=0.001)


def held(records: Records, variant: str, **sizes: Any) -> str:
    """The trained parameters of this run, from the bytes that its reference holds beyond the frozen weights: weight,
    gradient and AdamW's two moments."""
    for record in records:
        asked = (record["measure"], record["quantity"], record["engine"], record["variant"])
        if asked == ("memory", "states", "reference", variant) and record["value"] and record["workload"] in NAMED:
            work = NAMED[record["workload"]].with_(dtype=record["dtype"])
            beyond = record["value"] - work.model.parameters * work.element_size
            number = beyond / 4 / (4 if work.optimizer == "adamw" else 2)
            expected = parameters(work.model, **sizes)
            share = number / work.model.parameters
            return (
                f"; {work.name} here holds {number:,.0f} trained ({expected:,} by the formula), {share:.1%} of its own"
            )
    return ""
