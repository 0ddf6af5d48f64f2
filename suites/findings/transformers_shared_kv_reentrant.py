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
SIZES |= {"num_kv_shared_layers": 2}  # the last two
GEMMA_4 = SIZES | {"global_head_dim": 16}
GEMMA_3N = SIZES | {"laurel_rank": 8, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}


def key_value_gradient(model, reentrant=None):
    """The gradient of the key and value projections of layers 0 and 1, and the loss."""
    torch.manual_seed(0)
    if model == "Gemma 4":
        model = hf.Gemma4ForCausalLM(hf.Gemma4TextConfig(**GEMMA_4))
    else:
        model = hf.Gemma3nForCausalLM(hf.Gemma3nTextConfig(**GEMMA_3N))
    model.train()
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    rows = torch.arange(5, 17).view(2, 6)
    loss = model(input_ids=rows, labels=rows, use_cache=False).loss
    loss.backward()
    attention = [layer.self_attn for layer in model.model.layers[:2]]
    weights = [weight for layer in attention for weight in (layer.k_proj.weight, layer.v_proj.weight)]
    return torch.cat([weight.grad.flatten() for weight in weights]), loss.item()


if __name__ == "__main__":
    logging.disable()
    warnings.simplefilter("ignore")
    wrong = False
    for model in ("Gemma 4", "Gemma 3n"):
        expected, loss = key_value_gradient(model)
        print(f"expected {model}: gradient of norm {expected.norm():.4f}, loss {loss:.4f} (no checkpointing)")
        for reentrant in (False, True):  # the first is the control
            found, loss = key_value_gradient(model, reentrant)
            off = ((found - expected).norm() / expected.norm()).item()
            print(f"found    {model}: gradient off by {off:.1e}, loss {loss:.4f} (use_reentrant={reentrant})")
            assert reentrant or off < 1e-3, "the control is off as well"
            wrong |= off > 1e-3
    print("still there" if wrong else "gone")
    sys.exit(wrong)
