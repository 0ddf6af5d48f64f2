"""One layer of latent attention on normally distributed tokens and weights."""

from collections.abc import Mapping
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.spec import Workload
from impls.acceleration.latent_attention.sizes import sizes

EPS, THETA = 1e-6, 10000.0


def rotated(x: Tensor, theta: float) -> Tensor:
    """RoPE (Su et al. 2021, equation 34) on [b, heads, s, d], with neighbours as pairs, as in DeepSeek's models:
    dimensions 2i and 2i + 1 turn by position · θ^(−2i/d).
    Afterwards the first elements of all pairs precede the second ones; the order does not affect scores."""
    wide = torch.promote_types(x.dtype, torch.float32)
    s, d = x.shape[-2:]
    frequency = theta ** (-torch.arange(0, d, 2, device=x.device, dtype=torch.float32) / d)
    angle = torch.outer(torch.arange(s, device=x.device, dtype=torch.float32), frequency).to(wide)
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    first, second = x[..., ::2], x[..., 1::2]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def draw(workload: Workload, absorbed: bool = False) -> dict[str, Tensor]:
    """x [b, s, h]; q_down [r_q, h], q_norm [r_q], q_up [a(d + d_R), r_q]; kv_down [r + d_R, h], kv_norm [r],
    kv_up [a(d + d), r], whose rows are a head's key, then its value; out [h, a·d]: float64, all differentiated, and
    the same for every variant."""
    model, generator = workload.model, torch.Generator().manual_seed(workload.seed)
    a, r_q, r, d, d_r = sizes(model)
    h = model.hidden_size
    shapes = {"q_down": (r_q, h), "q_up": (a * (d + d_r), r_q), "kv_down": (r + d_r, h)}
    shapes |= {"kv_up": (a * 2 * d, r), "out": (h, a * d)}

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {name: normal(*shape) / shape[1] ** 0.5 for name, shape in shapes.items()}
    inputs |= {name: 1 + normal(size) / 4 for name, size in (("q_norm", r_q), ("kv_norm", r))}
    inputs["x"] = normal(workload.batch_size, workload.sequence_length, h)
    return {name: tensor.requires_grad_() for name, tensor in inputs.items()}


def plain(inputs: Mapping[str, Tensor], absorbed: bool = False) -> dict[str, Tensor]:
    """Writes out every head's keys and values and the s × s scores: the function that both forms compute."""
    x = inputs["x"]
    b, s, _ = x.shape
    r_q, r = len(inputs["q_norm"]), len(inputs["kv_norm"])
    d_r = len(inputs["kv_down"]) - r
    heads = (len(inputs["q_up"]) - len(inputs["kv_up"]) // 2) // d_r
    d = len(inputs["kv_up"]) // 2 // heads
    query = F.rms_norm(x @ inputs["q_down"].mT, (r_q,), inputs["q_norm"], EPS) @ inputs["q_up"].mT
    query = query.view(b, s, heads, d + d_r).transpose(1, 2)
    latent, shared = (x @ inputs["kv_down"].mT).split([r, d_r], -1)
    key, value = (
        (F.rms_norm(latent, (r,), inputs["kv_norm"], EPS) @ inputs["kv_up"].mT)
        .view(b, s, heads, 2 * d)
        .transpose(1, 2)
        .chunk(2, -1)
    )
    query = torch.cat([query[..., :d], rotated(query[..., d:], THETA)], -1)
    key = torch.cat([key, rotated(shared[:, None], THETA).expand(-1, heads, -1, -1)], -1)
    scores = query @ key.mT / (d + d_r) ** 0.5
    later = torch.ones(s, s, dtype=torch.bool, device=x.device).triu(1)
    weights = scores.masked_fill(later, -inf).softmax(-1)
    return {"output": (weights @ value).transpose(1, 2).flatten(2) @ inputs["out"].mT}
