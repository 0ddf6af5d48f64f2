"""Multi-head latent attention: keys and values of all heads from one short vector per token."""

from harness.spec import Card, Claim, Engine, Functions, Law

HERE = "impls.acceleration.latent_attention"
V2 = "DeepSeek-AI 2024, DeepSeek-V2, arXiv:2405.04434"

CARD = Card(
    name="latent_attention",
    title="Multi-head latent attention",
    sources=(f"{V2}, section 2.1, equations 9–19", "DeepSeek-AI 2024, DeepSeek-V3, section 2.1.1"),
    variants={"mla": {"absorbed": False}, "mla_absorbed": {"absorbed": True}},
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "megatron": Engine(f"{HERE}.on_megatron:build", requires=("megatron-core>=0.16",), variants=("mla",)),
        "transformers": Engine(f"{HERE}.on_transformers:build", requires=("transformers>=5",), variants=("mla",)),
    },
    topologies=("dp1", "tp2"),
    contract=Functions(f"{HERE}.problem", telling=()),  # both forms compute the same function
    laws=(Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "Shoeybi et al. 2019, section 3, of latents back"),),
    claims=(Claim("cache", "KV cache 93.3 % smaller than DeepSeek 67B's", f"{V2}, abstract", f"{HERE}.claims:cache"),),
)
