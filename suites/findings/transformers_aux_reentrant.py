"""Transformers: reentrant checkpointing cuts the router off from the load balancing loss, which keeps its value.

A mixture of experts is trained with `output_router_logits=True` and
`gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})`. A reentrant checkpoint runs the
layer's first forward pass under `no_grad`, and the router logits are recorded in that pass by a hook, beside the
layer's output: the loss that is made from them has a value and no gradient.
"""

import logging
import sys
import warnings

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM


def router_gradient(coefficient, use_reentrant=None):
    """The gradient of both routers, and the loss."""
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(
        vocab_size=64, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_experts=4, head_dim=16,
        num_experts_per_tok=2, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
        output_router_logits=True, router_aux_loss_coef=coefficient,
    ))  # fmt: skip
    model.train()
    if use_reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    rows = torch.tensor([[5, 6, 7, 8, 9, 1], [10, 11, 12, 13, 14, 1]])
    loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    return torch.cat([layer.mlp.gate.weight.grad.flatten() for layer in model.model.layers]), loss.item()


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)  # the matrices are tiny
    wrong = {}
    for name, coefficient, use_reentrant in [
        ("control: reentrant, no auxiliary loss", 0.0, True),
        ("control: not reentrant", 1.0, False),
        ("reentrant", 1.0, True),
    ]:
        (expected, loss), (found, loss_found) = (
            router_gradient(coefficient),
            router_gradient(coefficient, use_reentrant),
        )
        apart = ((found - expected).norm() / expected.norm()).item()
        print(f"expected router gradient of norm {expected.norm():.4f}, loss {loss:.4f}  (no checkpointing)")
        print(
            f"found    router gradient of norm {found.norm():.4f}, loss {loss_found:.4f}  ({name}), off by {apart:.1e}"
        )
        wrong[name] = apart > 1e-3
    without, _ = router_gradient(0.0)
    print(f"(without an auxiliary loss: {without.norm():.4f})")
    if any(wrong[name] for name in wrong if name.startswith("control")):
        raise RuntimeError("a control is off as well")
    wrong = wrong["reentrant"]
    print("still there" if wrong else "gone")
    sys.exit(wrong)
