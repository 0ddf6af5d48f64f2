"""Transformers: reentrant checkpointing loses the gradient of shared keys and values; the loss stays right.

A user trains Gemma 4 or Gemma 3n, whose last layers reuse the keys and values of an earlier layer, with
`gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})`. A reentrant checkpoint runs the
earlier layer under `no_grad`, and its keys and values reach the later layers in a dict, beside the layer's output: no
gradient comes back to them.
"""

import logging
import sys
import warnings

import torch
import transformers as hf

SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "head_dim": 16}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.2}
SIZES |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
SIZES |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
GEMMA_4 = SIZES | {"global_head_dim": 16}
GEMMA_3N = SIZES | {"laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}


def key_value_gradient(model, shared_layers, use_reentrant=None):
    """The gradient of the key and value projections of layers 0 and 1, and the loss."""
    torch.manual_seed(0)
    if model == "Gemma 4":
        model = hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**GEMMA_4, num_kv_shared_layers=shared_layers))
    else:
        model = hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**GEMMA_3N, num_kv_shared_layers=shared_layers))
    model.train()
    if use_reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": use_reentrant})
    rows = torch.arange(5, 17).view(2, 6)
    loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    attention = [layer.self_attn for layer in model.model.layers[:2]]
    weights = [weight for layer in attention for weight in (layer.k_proj.weight, layer.v_proj.weight)]
    return torch.cat([weight.grad.flatten() for weight in weights]), loss.item()


def main():
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # the matrices are tiny
    off = {}
    for model in ("Gemma 4", "Gemma 3n"):
        for name, shared_layers, use_reentrant in [
            ("control: reentrant, nothing shared", 0, True),
            ("control: not reentrant, two layers share", 2, False),
            ("reentrant, two layers share", 2, True),
        ]:
            expected, loss = key_value_gradient(model, shared_layers)
            found, loss_found = key_value_gradient(model, shared_layers, use_reentrant)
            off[model, name] = ((found - expected).norm() / expected.norm()).item()
            print(f"expected {model}: gradient of norm {expected.norm():.4f}, loss {loss:.4f} (no checkpointing)")
            print(f"found    {model}: gradient of norm {found.norm():.4f}, loss {loss_found:.4f} ({name})", end="")
            print(f", off by {off[model, name]:.1e}")
    wrong = {name for (_, name), apart in off.items() if apart > 1e-3}
    if any(name.startswith("control") for name in wrong):
        raise RuntimeError("a control is off as well")
    return bool(wrong)


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
