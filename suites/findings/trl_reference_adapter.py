"""TRL: the reference of a trained adapter lacks its embedding part in DPO, KTO, GRPO and RLOO.

A user passes a `PeftModel` whose trained adapter is to be trained on. The trainers make a second adapter, "ref", and
copy into it the parameters with ".default." in their names. LoRA's on an embedding are entries of a ParameterDict, so
their names end in ".default": they are not copied, and the reference is the model without them.
"""

import logging
import sys
import tempfile

import datasets
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast, PrinterCallback, Qwen3Config, Qwen3ForCausalLM
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer

logging.disable()
PROMPTS, ANSWERS = {"prompt": ["b", "cd"] * 2}, ["efg", "hi", "j", "klm"]
PAIRS = PROMPTS | {"chosen": ANSWERS, "rejected": ANSWERS[::-1]}
ROLLOUTS = {"num_generations": 4, "max_completion_length": 6, "beta": 0.1}
REWARD = {"reward_funcs": lambda completions, **_: [float(len(text)) for text in completions]}
# trainer, its config, data, options, other arguments, what is logged in step 1, its value where reference = policy
CASES = [
    (DPOTrainer, DPOConfig, PAIRS, {}, {}, "loss", 0.6931),  # log 2
    (GRPOTrainer, GRPOConfig, PROMPTS, ROLLOUTS, REWARD, "kl", 0.0),
]


def first_value(target, trainer_class, config_class, data, options, others, key):
    """What the trainer logs in its first step for a model with a trained adapter on the module `target`."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = Qwen3ForCausalLM(Qwen3Config(vocab_size=27, **sizes, num_hidden_layers=2, initializer_range=0.2))
    policy = get_peft_model(base, LoraConfig(r=4, target_modules=[target], task_type="CAUSAL_LM"))
    for weight in policy.parameters():
        weight.data += 0.3 * weight.requires_grad * torch.randn_like(weight)  # as if the adapter had been trained
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate("*abcdefghijklmnopqrstuvwxyz")}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="*", eos_token="a")
    train_dataset = datasets.Dataset.from_dict(data)
    with tempfile.TemporaryDirectory() as folder:
        config = config_class(folder, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no",
                              report_to="none", disable_tqdm=True, per_device_train_batch_size=4,
                              **options)  # fmt: skip
        trainer = trainer_class(policy, args=config, train_dataset=train_dataset, processing_class=tokenizer, **others)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer.state.log_history[0][key]


wrong = False
for *case, expected in CASES:
    control, found = first_value("q_proj", *case), first_value("embed_tokens", *case)
    print(f"expected {expected:.4f}  ({case[0].__name__}, {case[5]} of step 1; adapter on q_proj: {control:.4f})")
    print(f"found    {found:.4f}  (adapter on embed_tokens)")
    assert abs(control - expected) < 1e-3, "the control, an adapter on q_proj, is off as well"
    wrong |= abs(found - expected) > 1e-3
print("still there" if wrong else "gone")
sys.exit(wrong)
