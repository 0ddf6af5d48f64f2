"""Hybrid parallelism: data, tensor, pipeline, context and expert parallelism on one device mesh."""

from harness.spec import Card, Claim, Engine, Law
from impls.parallelism.hybrid_3d.grid import DENSE, EXPERTS, GRID

HERE = "impls.parallelism.hybrid_3d"
NARAYANAN = "Narayanan et al. 2021, Efficient Large-Scale Language Model Training on GPU Clusters"

CARD = Card(
    name="hybrid_3d",
    title="Hybrid parallelism (3D)",
    sources=(
        f"{NARAYANAN}, §3",
        "Korthikanti et al. 2022, Reducing Activation Recomputation in Large Transformer Models, §4.2.2",
        "Rajbhandari et al. 2020, ZeRO, §5.1",
        "Llama Team 2024, The Llama 3 Herd of Models, §3.3.2: 4D parallelism",
    ),
    variants={
        "mesh": {},
        "mesh_sp": {"sequence_parallel": True},
        "mesh_zero1": {"partition": True},
        "mesh_zero_bubble": {"schedule": "interleaved_zb"},
        # Saved after a step, and resumed on another mesh of as many ranks.
        "resharding": {"partition": True, "resharding": "turned"},
        "resharding_dp": {"partition": True, "resharding": "unpiped"},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build"),
        "deepspeed": Engine(
            f"{HERE}.on_deepspeed:build",
            requires=("deepspeed>=0.16",),
            variants=("mesh", "mesh_zero1", "mesh_zero_bubble", "resharding", "resharding_dp"),
        ),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",)),
        # Its default weights of the routers' losses, micro-batches' means, where "megatron" weighs tokens.
        "megatron_means": Engine(
            f"{HERE}.on_megatron:build_means", requires=("megatron-core>=0.16",), variants=("mesh", "mesh_sp")
        ),
        # Each of the tensor-parallel ranks has whole experts, on its tokens of the sequence.
        "megatron_expert_tp1": Engine(
            f"{HERE}.on_megatron:build_whole_experts", requires=("megatron-core>=0.16",), variants=("mesh_sp",)
        ),
        "megatron_deepspeed": Engine(
            unavailable="a repository without a setup.py, for PyTorch 1.8 and Apex; the two that it is made of are "
            "judged each by itself"
        ),
        "alpa": Engine(
            unavailable="alpa 0.2.0 wants jax 0.3.15, for which all jaxlibs that PyPI still has (0.4.13 and later) are "
            "too new: 'jaxlib version 0.10.2 is newer than and incompatible with jax version 0.3.15'"
        ),
    },
    topologies=(*DENSE, *EXPERTS, "tp2", "cp2", "pp2"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, f"{NARAYANAN}, §3: Ψ ÷ (p·t)", direction="at_most"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, f"{NARAYANAN}, §3: the sum of what the axes send"),
    ),
    claims=(
        Claim(
            "mt_nlg",
            "530 B parameters: 60.1, 50.2 and 44.4 s a step on 2,240, 2,800 and 3,360 A100: 126, 121, 113 TFLOP/s each",
            "Smith et al. 2022, Using DeepSpeed and Megatron to Train Megatron-Turing NLG 530B, §2.4",
            f"{HERE}.claims:mt_nlg",
        ),
        Claim(
            "alpa",
            "experts (GShard) 3.5 and 9.7 × as fast as with DeepSpeed on 2 and 4 nodes",
            "Zheng et al. 2022, Alpa, §1",
            f"{HERE}.claims:alpa",
        ),
    ),
)
