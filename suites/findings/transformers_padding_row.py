"""A model whose config has pad_token_id = eos_token_id never trains the end token's embedding.

nn.Embedding(padding_idx=config.pad_token_id) gives this row no gradient. With pad = eos, as usual for models without a
padding token, this is the end of every turn of a conversation, which the next turn reads. The same model without
pad_token_id in its config, which computes the same logits, is the control.
"""

import logging
import sys
import warnings

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

logging.disable()
warnings.simplefilter("ignore")
END = 1
TEXT = torch.tensor([[0, 5, 6, END, 7, 8, END]])  # a question, its end, an answer, its end


def gradient(pad_token_id):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=8,
        eos_token_id=END,
        pad_token_id=pad_token_id,
        tie_word_embeddings=False,
    )
    model = Qwen3ForCausalLM(config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    loss = model(input_ids=TEXT, labels=TEXT).loss
    loss.backward()
    return float(loss), float(model.model.embed_tokens.weight.grad[END].norm())


if __name__ == "__main__":
    (control_loss, expected), (loss, found) = gradient(None), gradient(END)
    print(
        f"expected gradient of the end token's embedding {expected:.4f} (loss {control_loss:.4f}) without padding token"
    )
    print(
        f"found    gradient of the end token's embedding {found:.4f} (loss {loss:.4f}) with pad_token_id = eos_token_id"
    )
    if not expected or loss != control_loss:
        raise RuntimeError("the control, no pad_token_id, is wrong too")
    wrong = found == 0
    print("still there" if wrong else "gone")
    sys.exit(wrong)
