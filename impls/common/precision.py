"""What float16 needs beyond narrow numbers."""

from harness.spec import Unsupported, Workload


def without_loss_scale(workload: Workload, engine: str) -> None:
    """Unsupported in float16, for an adapter whose engine would scale the loss there, which no dense model but that of
    mixed precision does, or would train float16 weights without masters unless it does."""
    if workload.dtype == "fp16":
        raise Unsupported(f"{engine} scales the loss in float16, which the topic mixed_precision tests")
