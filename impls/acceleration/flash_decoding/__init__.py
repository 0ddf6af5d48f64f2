"""Flash-Decoding: attention of one new token to a long cache, split over its keys."""

from harness.spec import Card, Claim, Engine, Functions, Law
from impls.acceleration.flash_decoding.grid import GRID

HERE = "impls.acceleration.flash_decoding"
BLOG = "Dao et al. 2023, Flash-Decoding for long-context inference, PyTorch blog"
PLUS = "Hong et al. 2023, FlashDecoding++, arXiv:2311.01282"
SPLIT, FEW, PAGED = "decode_split", "decode_few", "decode_paged"

CARD = Card(
    name="flash_decoding",
    title="Flash-Decoding",
    sources=(BLOG, f"{PLUS}, section 3", "Kwon et al. 2023, PagedAttention, arXiv:2309.06180, section 4.1"),
    variants={
        SPLIT: {"queries": 1, "unified": False, "paged": False},
        FEW: {"queries": 4, "unified": False, "paged": False},
        "decode_unified": {"queries": 1, "unified": True, "paged": False},
        PAGED: {"queries": 1, "unified": False, "paged": True},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "sdpa_math": Engine(f"{HERE}.on_torch:build_math", variants=(SPLIT, FEW)),
        "sdpa_flash": Engine(f"{HERE}.on_torch:build_flash", variants=(SPLIT, FEW)),
        "sdpa_efficient": Engine(f"{HERE}.on_torch:build_efficient", requires=("cuda",), variants=(SPLIT, FEW)),
        "flex": Engine(f"{HERE}.on_flex:build", requires=("cuda",), variants=(SPLIT, FEW)),
        "flash_attn": Engine(
            f"{HERE}.on_flash_attn:build", requires=("flash-attn>=2.6", "cuda"), variants=(SPLIT, FEW, PAGED)
        ),
        "flash_attn_4": Engine(
            f"{HERE}.on_flash_attn_4:build", requires=("flash-attn-4>=4.0.0b30", "sm90"), variants=(SPLIT, FEW, PAGED)
        ),
        "xformers": Engine(f"{HERE}.on_xformers:build", requires=("xformers>=0.0.30", "cuda"), variants=(SPLIT, FEW)),
        "flashinfer": Engine(
            f"{HERE}.on_flashinfer:build", requires=("flashinfer-python>=0.6", "cuda"), variants=(SPLIT, PAGED)
        ),
    },
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", exact=("fallbacks",), flops=f"{HERE}.laws:flops"),
    grid=GRID,
    # 1 %: allocators round each tensor up.
    laws=(Law("memory", "saved", f"{HERE}.laws:saved", 0.01, f"{BLOG}: the splits are merged", direction="at_most"),),
    claims=(
        Claim("cache_read_once", "a step reads the cache of keys and values once", BLOG, f"{HERE}.claims:bytes_read"),
        Claim(
            "decoding_error",
            "at most 2 × the error of standard attention in the same precision",
            "Dao et al., flash-attn, tests/test_flash_attn.py, 2022–2025",
            f"{HERE}.claims:error",
        ),
        Claim("decoding_speedup", "up to 8 × faster decoding of very long sequences", BLOG, f"{HERE}.claims:speedup"),
        Claim(
            "unified_range",
            "for Llama2-7B more than 99.99 % of the scores are within [−16.8, 6.5]; OPT-6.7B's range is too large",
            f"{PLUS}, section 3",
            f"{HERE}.claims:unified_range",
        ),
        Claim(
            "unified_speedup",
            "1.37 × as fast as Flash-Decoding on average, up to 4.86 × as fast as Hugging Face's code",
            f"{PLUS}, abstract",
            f"{HERE}.claims:unified_speedup",
        ),
    ),
)
