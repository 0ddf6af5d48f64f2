"""Pipeline parallelism: the layers are cut into stages."""

from harness.spec import Card, Claim, Engine, Law, Trainers
from impls.parallelism.pipeline_parallel.grid import GRID

HERE = "impls.parallelism.pipeline_parallel"
NARAYANAN = "Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters"
QI = "Qi et al. 2023, Zero Bubble Pipeline Parallelism"
COURSE = "AIInfra course, pipeline parallelism"

CARD = Card(
    name="pipeline_parallel",
    title="Pipeline parallelism",
    sources=(
        "Huang et al. 2019, GPipe, §2.3",
        "Narayanan et al. 2019, PipeDream, §3.2-3.3",
        f"{NARAYANAN}, §2.2",
        "Narayanan et al. 2021, Memory-Efficient Pipeline-Parallel DNN Training, §3.1",
        f"{QI}, §2",
        "Qi et al. 2024, Pipeline Parallelism with Controllable Memory, §4.1",
        "DeepSeek-AI 2024, DeepSeek-V3 Technical Report, §3.2.1",
    ),
    variants={
        "gpipe": {"schedule": "gpipe"},
        "1f1b": {"schedule": "1f1b"},
        "interleaved": {"schedule": "interleaved"},
        "looped_bfs": {"schedule": "looped_bfs"},
        "interleaved_zb": {"schedule": "interleaved_zb"},
        "zb_h1": {"schedule": "zb_h1"},
        "zb_v": {"schedule": "zb_v"},
        "dual_pipe": {"schedule": "dual_pipe"},
        "dual_pipe_v": {"schedule": "dual_pipe_v"},
        # Asynchronous: no engine that can be installed has them
        "pipedream": {"schedule": "pipedream"},
        "pipedream_2bw": {"schedule": "pipedream_2bw"},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(
            f"{HERE}.on_torch:build",
            variants=("gpipe", "1f1b", "interleaved", "looped_bfs", "interleaved_zb", "zb_v", "dual_pipe_v"),
        ),
        "megatron": Engine(
            f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=("1f1b", "interleaved")
        ),
        "megatron_batched": Engine(
            f"{HERE}.on_megatron:build_batched", requires=("megatron-core>=0.16",), variants=("interleaved",)
        ),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",), variants=("1f1b",)),
        "torchgpipe": Engine(f"{HERE}.on_torchgpipe:build", requires=("torchgpipe>=0.0.5",), variants=("gpipe",)),
        "fairscale": Engine(f"{HERE}.on_fairscale:build", requires=("fairscale>=0.4.13",), variants=("gpipe",)),
        "colossalai": Engine(
            f"{HERE}.on_colossalai:build",
            requires=("colossalai>=0.5",),
            variants=("1f1b", "interleaved"),
            environment="colossalai-suites",
        ),
        "pipedream": Engine(
            unavailable="a repository without a setup.py, for PyTorch 1.1 and CUDA 10; PyPI's pipedream is another one",
            variants=("pipedream",),
        ),
    },
    topologies=("pp2", "pp4"),
    contract=Trainers(plain=f"{HERE}.plain", replays=False),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, "the largest of the ranks' stages", direction="at_most"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{NARAYANAN}, §3.2: b·s·h a boundary and direction"),
        Law(
            "timeline",
            "bubble",
            f"{HERE}.laws:bubble",
            0.10,
            f"{NARAYANAN}, §2.2; {QI}, §2.3: idle ÷ total",
            unit="",
            direction="at_most",
        ),
        Law("timeline", "in_flight", f"{HERE}.laws:in_flight", 0.0, f"{NARAYANAN}, §2.2", unit="", direction="at_most"),
    ),
    claims=(
        Claim(
            "course_bubble",
            "(S−1)/(M+S−1): (4, 4) .429, (4, 8) .273, (4, 16) .158, (4, 32) .086, (8, 16) .304, (8, 32) .179",
            COURSE,
            f"{HERE}.claims:course_bubble",
        ),
        Claim(
            "course_schedules",
            "bubbles: naive 0, GPipe .086, 1F1B .094, interleaved .047",
            COURSE,
            f"{HERE}.claims:course_schedules",
        ),
        Claim("enough_micro_batches", "M ≥ 4S micro-batches", COURSE, f"{HERE}.claims:enough_micro_batches"),
        Claim("hanayo", "Hanayo up to 30.4 % better, on at most 32 GPUs", COURSE, f"{HERE}.claims:hanayo"),
        Claim("dual_pipe_memory", "DualPipe holds twice the parameters", COURSE, f"{HERE}.claims:dual_pipe_memory"),
        Claim("dual_pipe_bubble", "DualPipe idles (PP/2 − 1)(F&B + B − 3W)", COURSE, f"{HERE}.claims:dual_pipe_bubble"),
        Claim(
            "pipedream",
            "PipeDream trains up to 5.3 × as fast as data parallelism",
            "Narayanan et al. 2019, PipeDream, abstract",
            f"{HERE}.claims:pipedream",
        ),
        Claim("zb_h1", "ZB-H1 has a third of 1F1B's bubble at the same memory", f"{QI}, §2.3", f"{HERE}.claims:zb_h1"),
        Claim("interleaved", "v chunks divide the bubble by v", f"{NARAYANAN}, §2.2", f"{HERE}.claims:interleaved"),
    ),
)
