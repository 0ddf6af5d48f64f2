"""Pairs of completions of uneven lengths to shared prompts, with the last hidden states and the head of a policy and of
a reference model."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from harness.spec import Workload
from impls.posttraining.preference.reference import naive_log_probs


def draw(workload: Workload, beta: float) -> dict[str, Tensor]:
    """``batch_size // 2`` pairs, the chosen rows first. The reference model is the policy plus noise,
    which decreases with the length of the rows: training keeps the rewards of a completion near 1, where the loss has a
    gradient.

    policy_hidden and reference_hidden [2p, s, h], policy_head and reference_head [V, h], all float64, with the policy's
    differentiated; input_ids, attention_mask and completion_mask [2p, s] int64. A row is prompt, completion, padding
    (token 0), with at least one token each of the first two. Raises ValueError if a pair, or a prompt and a completion,
    do not fit.
    """
    pairs, length, vocab = workload.batch_size // 2, workload.sequence_length, workload.model.vocab_size
    if pairs < 1 or length < 2:
        raise ValueError(
            f"a pair needs at least batch_size 2 and sequence_length 2, not {workload.batch_size} and {length}"
        )
    generator = torch.Generator().manual_seed(workload.seed)
    prompt = torch.randint(1, length // 2 + 1, (pairs,), generator=generator).repeat(2)
    share = torch.rand(2 * pairs, generator=generator)
    end = prompt + 1 + (share * (length - prompt)).long()  # 1 … length − prompt tokens of completion
    position = torch.arange(length)
    attention_mask = (position < end[:, None]).long()
    completion_mask = attention_mask * (position >= prompt[:, None])
    ids = torch.randint(vocab, (2 * pairs, length), generator=generator)
    ids[pairs:] = torch.where(position < prompt[pairs:, None], ids[:pairs], ids[pairs:])
    size = workload.model.hidden_size
    hidden, noise = torch.randn(2, 2 * pairs, length, size, generator=generator, dtype=torch.float64)
    head = torch.randn(vocab, size, generator=generator, dtype=torch.float64) / size**0.5
    return {
        "policy_hidden": hidden.clone().requires_grad_(),
        "policy_head": head.clone().requires_grad_(),
        "reference_hidden": hidden + noise / length**0.5,
        "reference_head": head,
        "input_ids": ids * attention_mask,
        "attention_mask": attention_mask,
        "completion_mask": completion_mask,
    }


def plain(inputs: Mapping[str, Tensor], beta: float) -> dict[str, Tensor]:
    """Equation 7 as printed; the mean rewards are reported, not differentiated."""
    ids, mask = inputs["input_ids"], inputs["completion_mask"]
    log_probs, reference_log_probs = (
        naive_log_probs(inputs[f"{model}_hidden"], inputs[f"{model}_head"], ids, mask)
        for model in ("policy", "reference")
    )
    log_ratio = log_probs - reference_log_probs
    pairs = len(ids) // 2
    chosen, rejected = log_ratio[:pairs], log_ratio[pairs:]
    return {
        "loss": -logsigmoid(beta * chosen - beta * rejected).mean(),
        "chosen_rewards": beta * chosen.detach().mean(),
        "rejected_rewards": beta * rejected.detach().mean(),
    }
