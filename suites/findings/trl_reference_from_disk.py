"""TRL: DPO, KTO, GRPO and RLOO read their reference model from disk again: it is not the policy that they start from.

A user loads a model, changes it in memory (supervised training, a merged adapter) and passes it to a trainer without a
`ref_model`. The documentation promises "the model state before DPO training starts". The trainers call
`create_model_from_path(get_config_model_id(model.config))` instead: the checkpoint that the model was once loaded from.
"""

import logging
import sys
import tempfile

import datasets
import torch
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


def first_value(folder, change, trainer_class, config_class, data, options, others, key):
    """What the trainer logs in its first step for a policy whose weights were moved by `change` in memory."""
    policy = Qwen3ForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    for weight in policy.parameters():
        weight.data += change * torch.randn_like(weight)
    core = Tokenizer(models.BPE({letter: i for i, letter in enumerate("*abcdefghijklmnopqrstuvwxyz")}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, pad_token="*", eos_token="a")
    config = config_class(folder, use_cpu=True, bf16=False, max_steps=1, logging_steps=1, save_strategy="no",
                          report_to="none", disable_tqdm=True, per_device_train_batch_size=4, **options)  # fmt: skip
    train_dataset = datasets.Dataset.from_dict(data)
    trainer = trainer_class(policy, args=config, train_dataset=train_dataset, processing_class=tokenizer, **others)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer.state.log_history[0][key]


torch.manual_seed(0)
config = Qwen3Config(vocab_size=27, hidden_size=64, intermediate_size=64, num_hidden_layers=2, head_dim=16,
                     num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2)  # fmt: skip
wrong = False
with tempfile.TemporaryDirectory() as folder:
    Qwen3ForCausalLM(config).save_pretrained(folder)
    for *case, expected in CASES:
        control, found = first_value(folder, 0.0, *case), first_value(folder, 0.05, *case)
        print(f"expected {expected:.4f}  ({case[0].__name__}, {case[5]} of step 1; unchanged model: {control:.4f})")
        print(f"found    {found:.4f}  (model changed in memory)")
        assert abs(control - expected) < 1e-3, "the control, an unchanged model, is off as well"
        wrong |= abs(found - expected) > 1e-3
print("still there" if wrong else "gone")
sys.exit(wrong)
