"""TRL's SFTTrainer: it renders and masks the conversations itself, and trains every weight of Transformers' Qwen3 in
its own loop."""

from functools import partial

import datasets
from trl import SFTConfig, SFTTrainer

from harness.spec import Curves, Topology, Unsupported, Workload
from impls.engines.hugging_face import tokenizer
from impls.engines.hugging_face_loop import Watch, arguments, curves, loaded, quiet
from impls.finetuning.finetuning_curves import task
from impls.finetuning.sft.chat import CHAT, messages, vocabulary


def run(workload: Workload, topology: Topology, seed: int, budget: int, method: str, lr: float, rule: str) -> Curves:
    if workload.element_size < 4:
        raise Unsupported("it keeps no float32 masters of narrow weights")
    datasets.disable_progress_bars()
    with task.pretrained(workload, seed, lr) as work, quiet() as folder:
        turns = [messages(each.turns) for batch in task.batches(work, budget, rule) for each in batch]
        data = datasets.Dataset.from_list([{"prompt": each[:-1], "completion": each[-1:]} for each in turns])
        config = SFTConfig(folder, max_length=work.sequence_length, **arguments(work, task.WARM_UP))
        chat = tokenizer(vocabulary(work.model.vocab_size), **CHAT)
        trainer = SFTTrainer(loaded(work), config, train_dataset=data, processing_class=chat)
        tests = task.batch(task.held_out(rule))
        watch = Watch(tests.inputs, partial(task.exact_matches, labels=tests.labels), task.EVERY)
        return curves(trainer, work, watch)
