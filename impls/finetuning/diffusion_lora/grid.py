"""The work of this topic: two sizes of pictures, in micro-batches, with clipping and weight decay."""

from harness.spec import Grid, ModelConfig, Row, Workload

PICTURES = Workload(
    "pictures",
    ModelConfig(
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=6,
    ),
    batch_size=8,
    micro_batches=2,
    sequence_length=36,
    optimizer="adamw",
    lr=3e-3,
    weight_decay=0.1,
    eps=1e-6,
    max_grad_norm=0.1,
)
# Latents of 5 × 7, and channels that neither groups nor heads divide.
ODD = PICTURES.with_(
    name="odd_pictures",
    model=ModelConfig(
        hidden_size=13,
        intermediate_size=11,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=6,
    ),
    batch_size=6,
    micro_batches=1,
    sequence_length=35,
    optimizer="sgd",
    lr=0.1,
    weight_decay=0.0,
)
MORE = PICTURES.with_(name="more_pictures", seed=1)
# Every variant has an oracle of its own, which takes longer than its cases: by default each runs in one precision.
SINGLE = ("diffusion_lora_epsilon", "diffusion_lora_v_min_snr", "diffusion_lora_ema", "diffusion_lora_scaled")
NARROW = ("diffusion_lora_v", "diffusion_lora_min_snr")
GRID = Grid(
    rows=(
        Row(PICTURES, "fp32", True, SINGLE),
        Row(PICTURES, "bf16", False, NARROW),
        Row(MORE, "fp32", False, NARROW, full=True),
        Row(MORE, "bf16", False, SINGLE, full=True),
        Row(ODD, "fp32", True, ("diffusion_lora_epsilon", "diffusion_lora_v"), full=True),
        Row(ODD, "bf16", False, ("diffusion_lora_v",), full=True),
    ),
    timed=(),
)
