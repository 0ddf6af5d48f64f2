"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290, equation 7).

    L = −E log σ( β log π(y_w|x)/π_ref(y_w|x) − β log π(y_l|x)/π_ref(y_l|x) )

A completion's log-probability is the sum over its tokens, log π(y|x) = Σ_t z_t[y_t] − log Σ_v exp z_t[v], where the
logits z_t = W h_t come from the last hidden state h_t at the position *before* token t. Prompt and padding do not
count.

p        pairs; rows 0 … p − 1 are chosen (y_w), rows p … 2p − 1 rejected (y_l), pair by pair with the same prompt x
s, V, h  sequence length, vocabulary size, hidden size
hidden   [2p, s, h], of the policy π or of the reference model π_ref       head  [V, h], W of either
ids      [2p, s]     tokens of x, y and padding
mask     [2p, s]     1 at the tokens of y
n        tokens of all completions together
rewards  [p]         β log π/π_ref, the implicit reward r̂ of section 4

The naive form computes the logits of all positions, a log-softmax of the same size, and more in its backward pass. The
other form projects only the completions' positions, some at a time, keeps the log-sum-exp, and projects them again in
the backward pass.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn.functional import logsigmoid, pad

from harness.spec import Function, Topology, Workload

TILE = 256  # positions that are projected at once


def naive_log_probs(hidden: Tensor, head: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """log π(y|x), [2p], at least in float32: a sum over hundreds of tokens would lose all digits in bfloat16."""
    logits = hidden[:, :-1] @ head.T
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return (log_probs.gather(-1, ids[:, 1:, None]).squeeze(-1) * mask[:, 1:]).sum(-1)


class LogProbs(torch.autograd.Function):
    """log π(y|x), [2p], at least in float32, with the logits of at most ``TILE`` positions at a time."""

    @staticmethod
    def forward(ctx: FunctionCtx, hidden: Tensor, head: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        # The host waits once, for n. Positions are counted through all rows; a token's is the one before it.
        place = pad(mask[:, 1:], (0, 1)).flatten().nonzero().squeeze(-1)  # [n]
        h, y, row = hidden.flatten(0, 1)[place], ids.flatten()[place + 1], place // ids.shape[1]  # [n, h], [n], [n]
        logsumexp = h.new_empty(len(h), dtype=torch.promote_types(h.dtype, torch.float32))
        sums = logsumexp.new_zeros(len(ids), dtype=torch.float64)  # hundreds of terms would lose digits
        for tile in torch.arange(len(h), device=h.device).split(TILE):
            z = (h[tile] @ head.T).to(logsumexp.dtype)
            logsumexp[tile] = z.logsumexp(-1)
            sums.index_add_(0, row[tile], z.gather(-1, y[tile, None]).squeeze(-1).sub(logsumexp[tile]).double())
        ctx.save_for_backward(hidden, head, place, y, row, logsumexp)
        return sums.to(logsumexp.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_sums: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """∂ log π / ∂z_t = onehot(y_t) − softmax(z_t)."""
        hidden, head, place, y, row, logsumexp = ctx.saved_tensors
        h = hidden.flatten(0, 1)[place]
        d_h, d_head = torch.empty_like(h), torch.zeros_like(head, dtype=logsumexp.dtype)
        for tile in torch.arange(len(h), device=h.device).split(TILE):
            z = (h[tile] @ head.T).to(logsumexp.dtype)
            d_z = z.sub_(logsumexp[tile, None]).exp_().neg_()
            d_z.scatter_add_(-1, y[tile, None], torch.ones_like(d_z[:, :1]))
            d_z = d_z.mul_(d_sums[row[tile], None]).to(head.dtype)
            d_h[tile] = d_z @ head
            d_head += d_z.T @ h[tile]
        d_hidden = hidden.new_zeros(hidden.shape)
        d_hidden.view(-1, hidden.shape[-1])[place] = d_h
        return d_hidden, d_head.to(head.dtype), None, None


def dpo(log_probs: Tensor, reference_log_probs: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Equation 7: the mean loss over pairs, and the rewards of the chosen and of the rejected completions, [p] each."""
    chosen, rejected = (beta * (log_probs - reference_log_probs)).chunk(2)
    return -logsigmoid(chosen - rejected).mean(), chosen, rejected


def build(workload: Workload, topology: Topology, beta: float) -> Function:
    """Inputs as ``problem.draw`` returns them → the loss, and the batch's mean rewards, which are only reported."""

    def loss(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        ids, mask = inputs["input_ids"], inputs["completion_mask"]
        log_probs = LogProbs.apply(inputs["policy_hidden"], inputs["policy_head"], ids, mask)
        with torch.no_grad():
            reference_log_probs = LogProbs.apply(inputs["reference_hidden"], inputs["reference_head"], ids, mask)
        value, chosen, rejected = dpo(log_probs, reference_log_probs, beta)
        return {
            "loss": value,
            "chosen_rewards": chosen.detach().mean(),
            "rejected_rewards": rejected.detach().mean(),
        }

    return loss
