"""Published figures of multi-token prediction and of drafting with it."""

from collections.abc import Mapping, Sequence
from typing import Any

from harness.spec import Measurement, assessed

Records = Sequence[Mapping[str, Any]]

# DeepSeek-V3 (DeepSeek-AI 2024, §4.2): hidden and vocabulary size, layers, and its weights' documentation.
H, V = 7168, 129280
HEADS, Q_RANK, KV_RANK, NOPE, ROPE, HEAD = 128, 1536, 512, 128, 64, 128
EXPERTS, CHOSEN, SHARED, WIDTH = 256, 8, 1, 2048
ACTIVATED = 37e9  # parameters of the main model for each token


def layer(experts: int) -> int:
    """Parameters of a layer with latent attention and this number of experts, without the gains of its norms."""
    queries = H * Q_RANK + Q_RANK * HEADS * (NOPE + ROPE)
    keys_and_values = H * (KV_RANK + ROPE) + KV_RANK * HEADS * (NOPE + HEAD)
    return queries + keys_and_values + HEADS * HEAD * H + EXPERTS * H + experts * 3 * H * WIDTH


def module(experts: int) -> int:
    """ψ without gains: a layer and M_1."""
    return layer(experts) + 2 * H * H


def module_size(records: Records) -> Measurement:
    """11.5 B of the module's own, 0.9 B each of embedding and head shared, 2.4 B activated with these two."""
    own, shared, active = module(EXPERTS + SHARED), V * H, module(CHOSEN + SHARED)
    arithmetic = (
        f"{EXPERTS} + {SHARED} experts: a layer {layer(EXPERTS + SHARED) / 1e9:.2f} B, M_1 {2 * H * H / 1e9:.2f} B, "
        f"together {own / 1e9:.2f} B; embedding and head {shared / 1e9:.2f} B each; with {CHOSEN} + {SHARED} experts a "
        f"token activates {(active + 2 * shared) / 1e9:.2f} B with both, {(active + shared) / 1e9:.2f} B with the head"
    )
    reason = (
        f"2h² + a layer gives {own / 1e9:.1f} B ({own / 11.5e9 - 1:+.1%}) and {(active + 2 * shared) / 1e9:.1f} B "
        "activated; the law of the states is the same formula, for the model of this run"
    )
    return assessed("module_size", "formula only", reason, arithmetic, value=own / 1e9, law=11.5, unit="B parameters")


def acceptance(records: Records) -> Measurement:
    """The second token is accepted in 85 to 90 % of cases."""
    arithmetic = "a draft is accepted with probability p = Σ_t min(P(t), P¹(t)): it is 1 only where both agree"
    reason = (
        "needs DeepSeek-V3 and its module, trained on trillions of tokens, and text to decode; the synthetic stream of "
        "these workloads, where nine tokens of ten follow from the one before, would say nothing of it"
    )
    return assessed("acceptance", "out of reach here", reason, arithmetic, law=0.875, unit="of second tokens")


def speed(records: Records) -> Measurement:
    """1.8 × tokens per second with an acceptance of 85 to 90 %."""
    share = (module(CHOSEN + SHARED) + V * H) / ACTIVATED
    low, high = (1 + p for p in (0.85, 0.9))
    arithmetic = (
        f"1 + p = {low:.2f} to {high:.2f} tokens a pass; the module reads {share:.1%} of the weights that a token "
        f"activates in the main model: {low / (1 + share):.2f} to {high / (1 + share):.2f} ×, if a pass over two "
        "tokens takes as long as over one"
    )
    return assessed(
        "speed",
        "formula only",
        f"the formula gives {low / (1 + share):.2f} to {high / (1 + share):.2f} ×: 1.8 × is possible, and leaves "
        f"{low / 1.8 - 1:.0%} to {high / 1.8 - 1:.0%} for the module and for checking",
        arithmetic,
        value=(low + high) / 2 / (1 + share),
        law=1.8,
        unit="× tokens per second",
    )


def drafting(records: Records) -> Measurement:
    """EAGLE 2.7 to 3.5 ×, EAGLE-2 3.05 to 4.26 ×, EAGLE-3 up to 6.5 ×."""
    arithmetic = (
        "a pass of the target model that checks drafts costs no less than one that decodes a token, so a speed-up of s "
        "needs more than s tokens a pass: at least 1.7 to 2.5, 2.05 to 3.26 and 5.5 accepted drafts. A chain of D "
        "modules drafts D, so EAGLE-3's figure needs depth 6 or more; these trees are deeper and are not trained here"
    )
    reason = (
        "inference: needs target models of 7 to 70 billion parameters with drafting heads trained on their hidden "
        "states, prompts of a benchmark, and a GPU that is bound by memory at batch size 1"
    )
    return assessed("drafting", "out of reach here", reason, arithmetic, law=6.5, unit="× tokens per second")
