"""QLoRA in NF4 on a CPU with AVX512-BF16: after one evaluation, the adapters get no gradients any more.

A user fine-tunes on such a CPU and evaluates in between. The first forward in eval() packs the weights for a kernel
that has no backward; train() does not unpack them, so that no gradient passes a quantised layer from then on.
"""

import logging
import sys
import tempfile
import warnings

import torch
from bitsandbytes.functional import has_avx512bf16
from peft import LoraConfig, get_peft_model
from transformers import BitsAndBytesConfig, Qwen3Config, Qwen3ForCausalLM
from transformers.utils.logging import disable_progress_bar

logging.disable()
warnings.simplefilter("ignore")
SIZES = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 2}


def qlora():
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        Qwen3ForCausalLM(Qwen3Config(**SIZES, **HEADS)).save_pretrained(folder)
        base = Qwen3ForCausalLM.from_pretrained(folder, quantization_config=nf4, device_map="cpu", dtype=torch.float32)
    return get_peft_model(base, LoraConfig(target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))


if __name__ == "__main__":
    disable_progress_bar()
    if not has_avx512bf16():
        print("cannot be judged: this CPU has no AVX512-BF16, whose kernel is at fault")
        sys.exit(2)
    torch.manual_seed(0)
    model, ids = qlora(), torch.arange(32).view(2, 16)
    adapters = [p for p in model.parameters() if p.requires_grad]
    for p in adapters:
        torch.nn.init.normal_(p, 0, 0.1)  # as if trained

    def gradients():
        model.train().zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        return sum(p.grad is not None and bool(p.grad.any()) for p in adapters)

    gradients()
    control = gradients()
    with torch.no_grad():
        model.eval()(input_ids=ids, use_cache=False)
    found = gradients()
    print(f"expected gradients for {len(adapters)} adapter tensors (before an evaluation: {control})")
    print(f"found    gradients for {found} after one")
    assert control == len(adapters), "gradients are missing before an evaluation too"
    wrong = found != len(adapters)
    print("still there" if wrong else "gone")
    sys.exit(wrong)
