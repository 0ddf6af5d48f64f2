"""Supervised fine-tuning on conversations: the loss of the answers, in padded, packed and padding-free rows."""

from harness.spec import Card, Engine, Law, Trainers
from impls.finetuning.sft.grid import GRID

HERE = "impls.finetuning.sft"
HUGGING_FACE = ("transformers>=5", "accelerate>=1.2")
TRL = ("trl>=1.0", *HUGGING_FACE, "datasets>=3")
LIGER = ("liger-kernel>=0.8", "cuda")
FUSED = ("sft_padded", "sft_padding_free", "sft_assistant_only")
PADDED = ("sft_padded", "sft_assistant_only", "sft_smoothed", "sft_truncated", "sft_truncated_left", "sft_resumed")
FLAT = ("sft_padding_free",)
PACKED = ("sft_packed", "sft_packed_eager", "sft_packed_flex", "sft_assistant_packed", "sft_packed_left")

CARD = Card(
    name="sft",
    title="Supervised fine-tuning",
    sources=(
        "Ouyang et al. 2022, InstructGPT, arXiv:2203.02155, §3.5: a model is fine-tuned on demonstrations",
        "Krell et al. 2021, Efficient Sequence Packing without Cross-contamination, arXiv:2107.02027, §3.2",
        "Szegedy et al. 2016, Rethinking the Inception Architecture, arXiv:1512.00567, §7: label smoothing",
        "Jain et al. 2023, NEFTune, arXiv:2310.05914, algorithm 1",
    ),
    variants={
        "sft_padded": {},
        "sft_packed": {"packing": "rows"},
        "sft_packed_eager": {"packing": "rows", "attention": "eager"},
        "sft_packed_flex": {"packing": "rows", "attention": "flex"},
        "sft_padding_free": {"packing": "one"},
        # Every answer of a conversation has a loss, not the last alone.
        "sft_assistant_only": {"every": True},
        "sft_assistant_packed": {"every": True, "packing": "rows"},
        "sft_smoothed": {"smoothing": 0.1},
        # Conversations are longer than the context.
        "sft_truncated": {"keep": "start"},
        "sft_truncated_left": {"keep": "end"},
        "sft_padding_free_left": {"keep": "end", "packing": "one"},
        "sft_packed_left": {"keep": "end", "packing": "rows"},
        # The model comes from a folder whose config names the padding token, as after an earlier run.
        "sft_resumed": {"every": True, "saved": True},
        "sft_neftune": {"noise": 5.0},
        # The weights are sharded over the ranks, as in ZeRO-3, which has a topic and a reference of its own.
        "sft_sharded": {"sharded": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "trl": Engine(f"{HERE}.on_trl:build", requires=TRL, variants=(*PADDED, *FLAT, *PACKED)),
        "transformers": Engine(
            f"{HERE}.on_transformers:build", requires=HUGGING_FACE, variants=(*PADDED, *FLAT, "sft_padding_free_left")
        ),
        "transformers_masked": Engine(f"{HERE}.on_transformers:build_masked", requires=HUGGING_FACE, variants=FLAT),
        # On a CPU, Liger's kernels run in Triton's interpreter alone.
        "trl_liger": Engine(f"{HERE}.on_trl:build_liger", requires=(*TRL, *LIGER), variants=FUSED),
        "transformers_liger": Engine(
            f"{HERE}.on_transformers:build_liger", requires=(*HUGGING_FACE, *LIGER), variants=FUSED
        ),
        "accelerate": Engine(
            f"{HERE}.on_accelerate:build", requires=(*HUGGING_FACE, "deepspeed>=0.16"), variants=("sft_sharded",)
        ),
        "torch": Engine(f"{HERE}.on_torch:build", requires=HUGGING_FACE, variants=("sft_sharded",)),
    },
    topologies=("dp1", "dp2", "dp4"),
    contract=Trainers(plain=f"{HERE}.plain", data=f"{HERE}.data", reads="conversations"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            "nothing is sharded, or all as in ZeRO-3",
            direction="at_most",
        ),
        # Engines also gather the number of tokens, and DistributedDataParallel a flag of each parameter.
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.002, "one all-reduce, or what ZeRO-3 sends"),
    ),
)
