"""What a model has beyond Qwen3's decoder without biases, and the one place where code that lacks it says so."""

from collections.abc import Callable, Mapping

from harness.spec import ModelConfig, Unsupported, Workload

# Feature → whether a model has it in sequences of a length, and its name in a sentence.
FEATURES: Mapping[str, tuple[Callable[[ModelConfig, int], bool], str]] = {
    "no_qk_norm": (lambda model, length: not model.qk_norm, "queries and keys without a norm"),
    "qkv_bias": (lambda model, length: model.qkv_bias, "biases on q, k and v"),
    "o_bias": (lambda model, length: model.o_bias, "a bias on attention's output"),
    "mlp_bias": (lambda model, length: model.mlp_bias, "biases in the MLP"),
    "rope_scaling": (lambda model, length: model.rope_scaling is not None, "RoPE scaling"),
    "sliding_window": (lambda model, length: 0 < model.sliding_window < length, "a sliding window"),
}


def without(workload: Workload, who: str, *features: str) -> None:
    """Raises Unsupported if the model has one of these features, of FEATURES: ``who`` does not support it. A window as
    long as the sequences changes nothing, and so is none."""
    for feature in features:
        has, name = FEATURES[feature]
        if has(workload.model, workload.sequence_length):
            raise Unsupported(f"{who} does not support {name}, which this model has")


def qwen3_alone(workload: Workload, who: str, *but: str) -> None:
    """Raises Unsupported for a model with any feature beyond Qwen3's decoder, ``but`` some: ``who`` has none else."""
    without(workload, who, *(feature for feature in FEATURES if feature not in but))
