"""Transformers' Trainer: every weight of its Qwen3, in its own loop."""

from functools import partial

from transformers import Trainer, TrainingArguments

from harness.spec import Curves, Topology, Unsupported, Workload
from impls.engines.hugging_face_loop import Watch, arguments, curves, loaded, quiet
from impls.finetuning.finetuning_curves import task


def run(workload: Workload, topology: Topology, seed: int, budget: int, method: str, lr: float, rule: str) -> Curves:
    if workload.element_size < 4:
        raise Unsupported("it keeps no float32 masters of narrow weights")
    with task.pretrained(workload, seed, lr) as work, quiet() as folder:
        config = TrainingArguments(folder, **arguments(work, task.WARM_UP))
        trainer = Trainer(loaded(work), config, train_dataset=task.rows(work, budget, rule))
        tests = task.batch(task.held_out(rule))
        watch = Watch(tests.inputs, partial(task.exact_matches, labels=tests.labels), task.EVERY)
        return curves(trainer, work, watch)
