"""DataCollatorForLanguageModeling hides the end of every text where the padding token is the end token.

A user sets tokenizer.pad_token = tokenizer.eos_token, as usual for models without a padding token. The collator hides
labels by the token's id instead of the attention mask, so the model never learns to stop.
"""

import logging
import sys
import warnings

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast

logging.disable()
warnings.simplefilter("ignore")
WORDS = ["<pad>", "<eos>", "<unk>", "a", "b", "c"]
TEXTS = [{"input_ids": [3, 4, 5, 1]}, {"input_ids": [5, 1]}]  # each ends with <eos>


def labels(pad_token):
    words = WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), eos_token="<eos>", pad_token=pad_token)
    return DataCollatorForLanguageModeling(tokenizer, mlm=False)(TEXTS)["labels"].tolist()


def main():
    expected = [[3, 4, 5, 1], [5, 1, -100, -100]]
    control, found = labels("<pad>"), labels("<eos>")
    print(f"expected labels {expected} (with a padding token of its own: {control})")
    print(f"found    labels {found} with pad_token = eos_token")
    if control != expected:
        raise RuntimeError("the control, a padding token of its own, is wrong too")
    return found != expected


if __name__ == "__main__":
    try:
        wrong = main()
    except Exception as error:
        print(f"cannot be judged: {error}")
        sys.exit(2)
    print("still there" if wrong else "gone")
    sys.exit(1 if wrong else 0)
