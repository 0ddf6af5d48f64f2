"""Model FLOPs of a step, and the maximum FLOP/s of a device."""

import time
from math import prod

from harness.spec import TORCH_NAMES, MoeConfig, Workload


def step_flops(workload: Workload) -> float:
    """Model FLOPs of forward and backward over the global batch: 6 per token and parameter in a matrix product (for
    experts, only those a token is sent to), and attention's two products, halved by causality (Narayanan et al. 2021,
    appendix; PaLM, appendix B). In a sliding window of w, a query meets w keys but for the first w ones, w/2."""
    model = workload.model
    embedding = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    vectors = sum(shape[0] for _, shape in model.shapes() if len(shape) == 1)
    idle = 0.0
    if isinstance(model, MoeConfig):
        experts = sum(prod(shape) for name, shape in model.shapes() if ".experts." in name)
        idle = experts * (1 - model.num_experts_per_tok / model.num_experts)
    dense = 6 * (model.parameters - embedding - vectors - idle) * workload.tokens
    width = model.num_attention_heads * model.head_dim
    s = workload.sequence_length
    windows = (min(model.window(layer) or s, s) for layer in range(model.num_hidden_layers))
    keys = sum(2 * w - w * w / s for w in windows)  # twice as many as a query meets on average, over the layers
    return float(dense + 6 * keys * width * workload.tokens)


def matmul_ceiling(dtype: str) -> float:
    """FLOP/s of the fastest of a few large square products on this rank's device."""
    import torch  # the parent process counts FLOPs without torch

    cuda = torch.cuda.is_available()
    size = 8192 if cuda else 1024
    kind: torch.dtype = getattr(torch, TORCH_NAMES[dtype])
    a, b = (torch.randn(size, size, device="cuda" if cuda else "cpu").to(kind) for _ in range(2))
    best = float("inf")
    for _ in range(8):
        start = time.perf_counter()
        torch.mm(a, b)
        if cuda:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best
