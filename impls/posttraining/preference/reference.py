"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    L = −E log σ( β log π(y_w|x)/π_ref(y_w|x) − β log π(y_l|x)/π_ref(y_l|x) )

A completion's log-probability is the sum over its tokens, log π(y|x) = Σ_t z_t[y_t] − log Σ_v exp z_t[v], where z_t are
the logits at the position *before* token t. Prompt and padding do not count.

p        pairs; rows 0 … p − 1 are chosen (y_w), rows p … 2p − 1 rejected (y_l), pair by pair with the same prompt x
s, V     sequence length, vocabulary size
logits   [2p, s, V], of the policy π or of the reference model π_ref (z above)
ids      [2p, s]     tokens of x, y and padding
mask     [2p, s]     1 at the tokens of y
rewards  [p]         β log π/π_ref, the implicit reward r̂ of section 4

The naive form makes a log-softmax as large as the logits, and its backward pass more. The other goes sequence by
sequence, over the completion's positions only, keeps the log-sum-exp, and writes the gradient once.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import logsigmoid

from harness.spec import Function, Topology, Workload


def naive_log_probs(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x), [2p], in float32 at least: a sum over hundreds of tokens has no digits left in bfloat16."""
    log_probs = (
        logits[:, :-1]
        .to(torch.promote_types(logits.dtype, torch.float32))
        .log_softmax(-1)
        .gather(-1, ids[:, 1:, None])
        .squeeze(-1)
    )
    return (log_probs * mask[:, 1:]).sum(-1)


class LogProbs(torch.autograd.Function):
    """log π(y|x), [2p], in float32 at least, without a tensor as large as the logits but their gradient."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        compute = torch.promote_types(logits.dtype, torch.float32)
        sums, kept = [], []
        for z, y, counted in zip(logits[:, :-1], ids[:, 1:], mask[:, 1:].bool(), strict=True):
            z, y = z[counted].to(compute), y[counted]  # [completion, V] and [completion]
            logsumexp = z.logsumexp(-1)
            sums.append((z.gather(-1, y[:, None]).squeeze(-1) - logsumexp).sum())
            kept.append(logsumexp)
        ctx.save_for_backward(logits, ids, mask, *kept)
        return torch.stack(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_sums: Tensor) -> tuple[Tensor, None, None]:
        """∂ log π / ∂z_t = onehot(y_t) − softmax(z_t)."""
        logits, ids, mask, *kept = ctx.saved_tensors
        d_logits = torch.zeros_like(logits)
        rows = zip(logits[:, :-1], ids[:, 1:], mask[:, 1:].bool(), kept, d_sums, d_logits[:, :-1], strict=True)
        for z, y, counted, logsumexp, d_sum, d_z in rows:
            y = y[counted]
            d = (z[counted].to(logsumexp.dtype) - logsumexp[:, None]).exp_().neg_()
            d[torch.arange(len(y), device=y.device), y] += 1
            d_z[counted] = (d.mul_(d_sum)).to(d_z.dtype)
        return d_logits, None, None


def dpo(log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 7: the mean loss over pairs, and the rewards of the chosen and of the rejected completions, [p] each."""
    chosen, rejected = (beta * (log_probs - reference_log_probs)).chunk(2)
    return -logsigmoid(chosen - rejected).mean(), chosen, rejected


def build(workload: Workload, topology: Topology, beta: float) -> Function:
    """Inputs as ``problem.draw`` gives them → the loss, and the batch's mean rewards, which are only reported."""

    def loss(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids, mask = inputs["input_ids"], inputs["completion_mask"]
        log_probs = LogProbs.apply(inputs["policy_logits"], ids, mask)
        with torch.no_grad():
            reference_log_probs = LogProbs.apply(inputs["reference_logits"], ids, mask)
        value, chosen, rejected = dpo(log_probs, reference_log_probs, beta)
        return {
            "loss": value,
            "chosen_rewards": chosen.detach().mean(),
            "rejected_rewards": rejected.detach().mean(),
        }

    return loss
