"""FlashAttention: exact attention in tiles, in memory linear in the sequence length."""

from harness.spec import Card, Claim, Engine, Functions, Law
from impls.acceleration.flash_attention.grid import GRID

_HERE = "impls.acceleration.flash_attention"
_COURSE = "AIInfra course, practice on FlashAttention"
_FA1 = "Dao et al. 2022, FlashAttention, arXiv:2205.14135"
_FA2 = "Dao 2023, FlashAttention-2, arXiv:2307.08691"
_FA3 = "Shah et al. 2024, FlashAttention-3, arXiv:2407.08608"

# No kernel has another order of loops than FlashAttention-2's.
_MASKS = ("fa2", "fa2_causal", "fa2_window", "fa2_top_left", "fa2_bottom_right", "fa2_unseen", "fa2_varlen")
_EVERY = (*_MASKS, "fa2_softcap", "fa2_sinks")
# The order of loops does not change the result.
_TELLING = ("causal", "window", "softcap", "sinks", "keys", "bottom_right", "packed")

CARD = Card(
    name="flash_attention",
    title="FlashAttention",
    sources=(
        f"{_FA1}, algorithms 1 and 4, theorems 1 and 2",
        f"{_FA2}, algorithms 1 and 2, section 3.1",
        f"{_FA3}, sections 3.1 and 3.3",
        "Ainslie et al. 2023, GQA, section 2.2",
        "Gemma Team 2024, Gemma 2, section 2: soft-capping",
        "OpenAI 2025, gpt-oss, section 2.2: sinks",
    ),
    variants={
        "fa1": {"outer": "keys", "causal": False},
        "fa2": {"causal": False},
        "fa2_causal": {"causal": True},
        "fa2_window": {"causal": True, "window": 40},
        "fa2_softcap": {"causal": True, "softcap": 2.0},
        "fa2_sinks": {"causal": True, "sinks": True},
        # Half as many keys again as queries, aligned at either end; and fewer keys than queries, where the first
        # queries see nothing.
        "fa2_top_left": {"causal": True, "keys": 1.5},
        "fa2_bottom_right": {"causal": True, "keys": 1.5, "bottom_right": True},
        "fa2_unseen": {"causal": True, "keys": 0.7, "bottom_right": True},
        "fa2_varlen": {"causal": True, "packed": True},
    },
    engines={
        "reference": Engine(f"{_HERE}.reference:build"),
        "triton": Engine(f"{_HERE}.on_triton:build", requires=("triton", "cuda"), variants=_EVERY),
        "sdpa_math": Engine(f"{_HERE}.on_torch:build_math", variants=_MASKS),
        "sdpa_flash": Engine(f"{_HERE}.on_torch:build_flash", variants=_MASKS),
        "sdpa_efficient": Engine(f"{_HERE}.on_torch:build_efficient", requires=("cuda",), variants=_MASKS),
        "sdpa_cudnn": Engine(f"{_HERE}.on_torch:build_cudnn", requires=("cuda",), variants=_MASKS),
        "transformers": Engine(
            f"{_HERE}.on_transformers:build", requires=("transformers>=5",), variants=("fa2_softcap", "fa2_sinks")
        ),
        "flex": Engine(f"{_HERE}.on_flex:build", requires=("cuda",), variants=_EVERY),
        "flash_attn": Engine(
            f"{_HERE}.on_flash_attn:build",
            requires=("flash-attn>=2.6", "cuda"),
            variants=tuple(name for name in (*_MASKS, "fa2_softcap") if name != "fa2_top_left"),
        ),
        "flash_attn_4": Engine(
            f"{_HERE}.on_flash_attn_4:build",
            requires=("flash-attn-4", "sm90"),
            variants=tuple(name for name in _EVERY if name != "fa2_top_left"),
        ),
        "transformer_engine": Engine(
            f"{_HERE}.on_transformer_engine:build",
            requires=("transformer-engine>=2.8", "cuda"),
            variants=(*_MASKS, "fa2_sinks"),
        ),
        "xformers": Engine(f"{_HERE}.on_xformers:build", requires=("xformers>=0.0.28", "cuda"), variants=_MASKS),
    },
    topologies=("dp1",),
    contract=Functions(f"{_HERE}.problem", telling=_TELLING, flops=f"{_HERE}.laws:flops"),
    grid=GRID,
    laws=(
        # 1 %: allocators round each tensor up, and SDPA keeps a few bytes for dropout's random state on CUDA.
        Law(
            "memory",
            "saved",
            f"{_HERE}.laws:saved",
            0.01,
            f"{_FA1}, theorem 1; {_FA2}, algorithm 1",
            direction="at_most",
        ),
    ),
    claims=(
        Claim(
            "memory_growth",
            "MB of standard/flash at N 256, 512, 1024, 2048: 6.26/3.22, 25.02/6.43, 80.02/12.81, 320.02/25.61",
            _COURSE,
            f"{_HERE}.claims:memory_growth",
        ),
        Claim(
            "memory_to_16k",
            "O(N) additional memory, for any N",
            f"{_FA1}, theorem 1",
            f"{_HERE}.claims:memory_to_16k",
        ),
        Claim(
            "fa1_hbm",
            "40.3 GB of HBM traffic become 4.4 GB (GPT-2 medium, sequence length 1024)",
            f"{_FA1}, figure 2",
            f"{_HERE}.claims:fa1_hbm",
        ),
        Claim(
            "fa2_error",
            "at most twice the error of standard attention in the same precision",
            "flash-attn's own tests",
            f"{_HERE}.claims:fa2_error",
        ),
        Claim("time_linear", "time linear in N", _COURSE, f"{_HERE}.claims:time_linear"),
        Claim(
            "causal_skip",
            "skipping masked blocks makes causal attention 1.7–1.8 × faster",
            f"{_FA2}, section 3.1",
            f"{_HERE}.claims:causal_skip",
        ),
        Claim(
            "fa1_training",
            "trains GPT-2 3 × as fast as Hugging Face's code, 1.7 × as fast as Megatron's",
            _FA1,
            f"{_HERE}.claims:fa1_training",
        ),
        Claim("fa2_over_fa1", "about 2 × as fast as FlashAttention", _FA2, f"{_HERE}.claims:fa2_over_fa1"),
        Claim("fa2_a100", "up to 230 TFLOP/s on an A100, 73 % of its peak", _FA2, f"{_HERE}.claims:fa2_a100"),
        Claim("fa3_h100", "740 TFLOP/s in fp16 forward on an H100, 75 %", _FA3, f"{_HERE}.claims:fa3_h100"),
        Claim("fa3_fp8_error", "FP8 error 2.6 × below baseline FP8", _FA3, f"{_HERE}.claims:fa3_fp8_error"),
    ),
)
