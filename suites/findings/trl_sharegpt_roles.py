"""SFTTrainer renames the keys of ShareGPT conversations, but not their roles, so that a chat template leaves them out.

ShareGPT's roles are human and gpt. Templates such as Qwen3's write system, user and assistant messages and no others:
of a system message, a question and an answer only the first is trained. The control has the roles user and assistant.
"""

import logging
import os
import sys
import tempfile
import warnings

os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_DISABLE_PROGRESS_BARS="1")

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM
from trl import SFTConfig, SFTTrainer

logging.disable()
warnings.simplefilter("ignore")
WORDS = ["<end>", "system", "user", "assistant", "be", "brief", "hello", "good", "day"]
TEMPLATE = (
    "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}{{ m.role }} {{ m.content }} <end> "
    "{% endif %}{% endfor %}"
)


def text(asks, answers):
    """The conversation that is trained, where these are the names of its roles."""
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = Qwen3Config(vocab_size=len(WORDS), num_hidden_layers=1, head_dim=8, **sizes)
    whole = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<end>"))
    whole.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<end>", chat_template=TEMPLATE)
    said = [("system", "be brief"), (asks, "hello"), (answers, "good day")]
    conversation = [{"from": role, "value": words} for role, words in said]
    with tempfile.TemporaryDirectory() as folder:
        trainer = SFTTrainer(
            Qwen3ForCausalLM(config),
            SFTConfig(folder, bf16=False, use_cpu=not torch.cuda.is_available(), report_to="none"),
            train_dataset=Dataset.from_list([{"conversations": conversation}]),
            processing_class=tokenizer,
        )
    return " | ".join(tokenizer.decode(row["input_ids"]) for row in trainer.train_dataset)


control, found = text("user", "assistant"), text("human", "gpt")
if "good day" not in control:
    raise RuntimeError(f"with user and assistant it trains {control!r}")
print(f"expected {control!r}, as with the roles user and assistant")
print(f"found    {found!r} with the roles human and gpt")
wrong = "good day" not in found
print("still there" if wrong else "gone")
sys.exit(wrong)
