"""Published figures of hybrids that nobody can install here: what of them arithmetic can check."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed

Records = Sequence[Mapping[str, Any]]
SECONDS = {2240: 60.1, 2800: 50.2, 3360: 44.4}  # of MT-NLG's step, by GPUs
TFLOPS = {2240: 126, 2800: 121, 3360: 113}  # a GPU
WITHIN = 0.01  # relative: of figures that were rounded to a TFLOP/s
ALPA_OVER_DEEPSPEED = {2: 3.5, 4: 9.7}  # by nodes of 8 GPUs


def mt_nlg(records: Records) -> Measurement:
    """126, 121 and 113 TFLOP/s a GPU from the step's seconds, by the count of Narayanan et al. 2021, eq. 3."""
    batch, length, layers, hidden, vocabulary = 1920, 2048, 105, 20480, 51200
    attention, head = length / (6 * hidden), vocabulary / (16 * layers * hidden)
    flops = 96 * batch * length * layers * hidden**2 * (1 + attention + head)
    found = {gpus: flops / seconds / gpus / 1e12 for gpus, seconds in SECONDS.items()}
    off = [gpus for gpus, rate in found.items() if abs(rate / TFLOPS[gpus] - 1) > WITHIN]
    rates = ", ".join(f"{rate:.0f}" for rate in found.values())
    arithmetic = f"{flops:.3g} FLOP a step with recomputation, ÷ seconds and GPUs: {rates} TFLOP/s"
    arithmetic += f"; not what was published for {off}" if off else "; they hold"
    reason = "takes 2,240 GPUs and Megatron-DeepSpeed, which cannot be installed"
    return assessed("mt_nlg", "out of reach here", reason, arithmetic, law=126.0, unit="TFLOP/s a GPU")


def alpa(records: Records) -> Measurement:
    """3.5 × and 9.7 × DeepSpeed's throughput on two and four nodes."""
    two, four = ALPA_OVER_DEEPSPEED[2], ALPA_OVER_DEEPSPEED[4]
    arithmetic = (
        f"from 2 to 4 nodes the ratio grows {four / two:.2f} ×, and Alpa's FLOP/s can at most double: DeepSpeed's fall "
        f"to {2 * two / four:.2f} of those on half the GPUs, or less"
    )
    reason = "takes four nodes of 8 V100, GShard's model and Alpa, which cannot be installed"
    return assessed("alpa", "out of reach here", reason, arithmetic, law=four, unit="× DeepSpeed's throughput")
