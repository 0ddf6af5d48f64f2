"""The topic's template as Hugging Face users have it: a tokenizer with a Jinja template, and conversations as texts.

The word of token 17 is "w17", so that texts and tokens are the same. The padding token is the end, as in the topic.
"""

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from impls.finetuning.sft.data import WORDS, Turn

SPECIAL = ["<bos>", "<end>", "<user>", "<assistant>"]  # by their tokens
TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
{% if message.role == 'assistant' %}<assistant>{% generation %}{{ message.content + '<end>' }}{% endgeneration %}\
{% else %}<user>{{ message.content + '<end>' }}{% endif %}{% endfor %}\
{% if add_generation_prompt %}<assistant>{% endif %}"""


def tokenizer(vocab_size: int, truncation_side: str = "right") -> PreTrainedTokenizerFast:
    words = {f"w{token}": token for token in range(WORDS, vocab_size)}
    whole = Tokenizer(WordLevel({name: token for token, name in enumerate(SPECIAL)} | words, unk_token="<end>"))
    whole.pre_tokenizer = WhitespaceSplit()
    made = PreTrainedTokenizerFast(
        tokenizer_object=whole,
        bos_token="<bos>",
        eos_token="<end>",
        pad_token="<end>",
        additional_special_tokens=SPECIAL[2:],
        truncation_side=truncation_side,
        chat_template=TEMPLATE,
    )
    return made


def messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": role, "content": " ".join(f"w{word}" for word in words)} for role, words in turns]
