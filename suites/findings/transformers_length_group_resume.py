"""Transformers: a resumed run with `train_sampling_strategy="group_by_length"` sees some rows twice and others never.

A checkpoint within the second or a later epoch is resumed by drawing this epoch's order again and leaving out the
rows that were seen. `Trainer` gives `LengthGroupedSampler` no generator, so its order is drawn from the global random
state, which is not the one that the epoch began with: another order is drawn.
"""

import collections
import logging
import os
import sys
import tempfile
import warnings

import datasets
import torch
from transformers import PrinterCallback, Qwen3Config, Qwen3ForCausalLM, Trainer, TrainingArguments

ROWS = [[i] * (2 + 5 * i % 9) for i in range(24)]  # row i holds its number: 12 batches of 2 are an epoch


def rows_seen(strategy, folder, checkpoint=None):
    """The rows in the order in which the trainer takes them, in two epochs or in what a checkpoint leaves of them."""
    seen = []

    def collate(rows):
        seen.extend(row["input_ids"][0] for row in rows)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True)
        return {"input_ids": ids, "labels": ids}

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "num_key_value_heads": 1}
    config = TrainingArguments(
        folder, use_cpu=True, num_train_epochs=2, save_steps=6, report_to="none", disable_tqdm=True,
        per_device_train_batch_size=2, train_sampling_strategy=strategy,
    )  # fmt: skip
    model = Qwen3ForCausalLM(Qwen3Config(vocab_size=24, **sizes, num_hidden_layers=1))
    data = datasets.Dataset.from_dict({"input_ids": ROWS})
    trainer = Trainer(model, config, data_collator=collate, train_dataset=data)
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=checkpoint)
    return seen


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    logging.disable(logging.CRITICAL)
    for strategy in ("random", "group_by_length"):  # the first is the control
        with tempfile.TemporaryDirectory() as folder:
            whole = rows_seen(strategy, folder)
            resumed = rows_seen(strategy, folder, os.path.join(folder, "checkpoint-18"))
        second_epoch = collections.Counter(whole[24:36] + resumed)  # 6 batches before the checkpoint, 6 after it
        twice, never = [row for row, n in second_epoch.items() if n > 1], sorted(set(range(24)) - set(second_epoch))
        print(f"expected rows {whole[36:]}  ({strategy}, second half of epoch 2)")
        print(f"found    rows {resumed}  (resumed); twice in epoch 2: {len(twice)}, never: {len(never)}")
        if sorted(whole[24:]) != list(range(24)) or len(resumed) != 12 or (strategy == "random" and never):
            raise RuntimeError("the control is off as well")
    wrong = bool(never)
    print("still there" if wrong else "gone")
    sys.exit(wrong)
