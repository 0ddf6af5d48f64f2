"""TRL's SFTTrainer: its template, masks, truncation and packing of texts, its collator, and its own training step with
its fused head."""

import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import datasets
import torch.distributed as dist
import transformers
from torch import Tensor
from transformers import AutoTokenizer
from transformers.integrations.liger import apply_liger_kernel
from trl import SFTConfig, SFTTrainer

from harness.spec import Topology, Unsupported, Workload
from impls.common.mesh import device
from impls.engines.hugging_face import QUIET, Stepped, decoder, tokenizer
from impls.finetuning.sft.chat import marked, messages, opened
from impls.finetuning.sft.data import Example


class Trl(Stepped):
    def __init__(
        self,
        workload: Workload,
        topology: Topology,
        every: bool = False,
        packing: str = "",
        attention: str = "sdpa",
        smoothing: float = 0.0,
        keep: str = "start",
        saved: bool = False,
        liger: bool = False,
    ) -> None:
        if attention == "flex" and device().type == "cpu":
            raise Unsupported("FlexAttention has no backward pass on a CPU")
        self.ranks, self.every = topology.dp, every
        chat, start = opened(workload, AutoTokenizer.from_pretrained, tokenizer)
        if every and not marked(start):
            raise Unsupported("TRL would train on a template of its own: this one has no {% generation %}")
        settings: dict[str, Any] = {
            "max_length": None if packing == "one" else workload.sequence_length,  # it accepts no other
            "truncation_mode": f"keep_{keep}",
            "packing": packing == "rows",
            "padding_free": packing == "one",
            "assistant_only_loss": every and (not start.given or bool(start.given.messages)),
            "label_smoothing_factor": smoothing,
            "use_liger_kernel": liger,
            "gradient_accumulation_steps": workload.micro_batches,
            "per_device_train_batch_size": workload.batch_size // topology.dp // workload.micro_batches,
        }
        self.configuration = f"SFTConfig({', '.join(f'{name}={value!r}' for name, value in settings.items())})"
        datasets.disable_progress_bars()
        transformers.logging.set_verbosity_error()
        # The model of a folder that TRL saved has the padding token in its config.
        fields = {"pad_token_id": chat.pad_token_id} if saved else {}
        model = decoder(workload, "flex_attention" if attention == "flex" else attention, **fields)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of arguments that it will not have in its next version
            config = SFTConfig(folder, use_cpu=device().type == "cpu", **QUIET, **settings)
            # A trainer requires a data set, and asks for its form.
            trainer = SFTTrainer(model, config, train_dataset=self.texts([start]), processing_class=chat)
        if liger:  # as train() does; TRL leaves out the fused head, for which it has its own
            apply_liger_kernel(trainer.model, trainer.args.liger_kernel_config)
        super().__init__(workload, trainer)

    def texts(self, examples: Sequence[Example]) -> datasets.Dataset:
        """A conversation of which every answer is learnt, or a prompt and its completion, none of them tokenised."""
        if examples[0].given and not examples[0].given.messages:
            pairs = [{"prompt": e.given.prompt, "completion": e.given.completion} for e in examples]
            return datasets.Dataset.from_list(pairs)
        whole = [list(e.given.messages) if e.given else messages(e.turns) for e in examples]
        if self.every:
            return datasets.Dataset.from_list([{"messages": each} for each in whole])
        return datasets.Dataset.from_list([{"prompt": each[:-1], "completion": each[-1:]} for each in whole])

    def backward(self, batch: Sequence[Example]) -> Tensor:
        share, args = len(batch) // self.ranks, self.trainer.args
        own = self.texts(batch[dist.get_rank() * share : (dist.get_rank() + 1) * share])
        rows = self.trainer._prepare_dataset(own, self.trainer.processing_class, args, args.packing, None, "train")
        return self.step(list(rows))


def build(workload: Workload, topology: Topology, **variant: Any) -> Trl:
    return Trl(workload, topology, **variant)


def build_liger(workload: Workload, topology: Topology, **variant: Any) -> Trl:
    """The same with Liger's kernels of the norms, the MLP and RoPE."""
    return Trl(workload, topology, liger=True, **variant)
