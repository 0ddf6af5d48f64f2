"""Multi-token prediction: modules behind the model that predict further tokens, each from the one before."""

from harness.spec import Card, Claim, Engine, Law, Trainers
from impls.acceleration.multi_token_prediction.grid import GRID

HERE = "impls.acceleration.multi_token_prediction"
DEEPSEEK = "DeepSeek-AI 2024, DeepSeek-V3 Technical Report, arXiv:2412.19437"
ONE = {"depth": 1, "weight": 0.3}  # λ of most of its training (ibid., §4.2)
MEGATRON = ("megatron-core>=0.16",)

CARD = Card(
    name="multi_token_prediction",
    title="Multi-token prediction",
    sources=(f"{DEEPSEEK}, §2.2, equations 21 to 25",),
    # A depth's loss is the mean over its own tokens; with over_t it has the factor 1/T that equation 24 prints.
    variants={
        "mtp1": ONE,
        "mtp2": {**ONE, "depth": 2},
        "mtp3": {**ONE, "depth": 3},
        "mtp2_sp": {**ONE, "depth": 2, "sequence_parallel": True},
        "mtp2_over_t": {**ONE, "depth": 2, "over_t": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "megatron": Engine(f"{HERE}.on_megatron:build", MEGATRON, ("mtp1", "mtp2", "mtp3", "mtp2_sp")),
        # With calculate_per_token_loss.
        "megatron_per_token": Engine(f"{HERE}.on_megatron:build_per_token", MEGATRON, ("mtp1", "mtp2", "mtp2_over_t")),
        "transformers": Engine(
            f"{HERE}.on_transformers:build", ("transformers>=5.24",), ("mtp1", "mtp2", "mtp3", "mtp2_over_t")
        ),
    },
    topologies=("dp1", "dp2", "tp2", "cp2"),
    contract=Trainers(plain=f"{HERE}.plain", observes=True, flops=f"{HERE}.laws:flops"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            f"{DEEPSEEK}, §2.2: a depth adds M_k and a layer, and shares embedding and head",
            direction="at_most",
        ),
        Law(
            "memory",
            "activations",
            f"{HERE}.laws:activations",
            0.05,
            f"{DEEPSEEK}, §2.2: a depth adds a layer, the input of M_k and the logits",
            direction="at_most",
        ),
        Law(
            "traffic",
            "bytes",
            f"{HERE}.laws:traffic",
            0.0,
            f"{DEEPSEEK}, §2.2: gradients of what a depth adds; a layer, an embedding and a head more of tp and cp",
        ),
    ),
    claims=(
        Claim(
            "module_size",
            "a module of DeepSeek-V3 has 11.5 B parameters of its own, and activates 2.4 B with the shared two",
            "DeepSeek-AI 2024, DeepSeek-V3, README_WEIGHTS.md",
            f"{HERE}.claims:module_size",
        ),
        Claim(
            "acceptance",
            "85 to 90 % of the second tokens are accepted in decoding",
            f"{DEEPSEEK}, §5.4.3",
            f"{HERE}.claims:acceptance",
        ),
        Claim("speed", "1.8 × tokens per second in decoding", f"{DEEPSEEK}, §5.4.3", f"{HERE}.claims:speed"),
        Claim(
            "drafting",
            "EAGLE 2.7 to 3.5 ×, EAGLE-2 3.05 to 4.26 ×, EAGLE-3 up to 6.5 × as fast in decoding",
            "Li et al. 2024, EAGLE; Li et al. 2024, EAGLE-2; Li et al. 2025, EAGLE-3: abstracts",
            f"{HERE}.claims:drafting",
        ),
    ),
)
