"""Published models as work: as many matrix products of the same sizes as in their papers and configs."""

from typing import NamedTuple

from harness.spec import ModelConfig, MoeConfig, Workload

# Chowdhery et al. 2022, table 1 and section 2: multi-query attention, SwiGLU, tied embeddings. Attention and MLP read
# the same input there, which changes no product.
PALM_540B = Workload(
    "palm-540b",
    ModelConfig(
        vocab_size=256000,
        hidden_size=18432,
        intermediate_size=73728,
        num_hidden_layers=118,
        num_attention_heads=48,
        num_key_value_heads=1,
        head_dim=256,
        tie_word_embeddings=True,
    ),
    batch_size=2048,
    sequence_length=2048,
)
# Grattafiori et al. 2024, The Llama 3 Herd of Models, table 3, and the published config.json.
LLAMA3_8B = Workload(
    "llama-3-8b",
    ModelConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
    ),
    batch_size=8,
    sequence_length=8192,
)
LLAMA3_70B = Workload(
    "llama-3-70b",
    ModelConfig(
        vocab_size=128256,
        hidden_size=8192,
        intermediate_size=28672,
        num_hidden_layers=80,
        num_attention_heads=64,
        num_key_value_heads=8,
        head_dim=128,
    ),
    batch_size=8,
    sequence_length=8192,
)
# Yang et al. 2025, Qwen3 Technical Report, table 2, and the published config.json.
QWEN3_30B_A3B = Workload(
    "qwen3-30b-a3b",
    MoeConfig(
        vocab_size=151936,
        hidden_size=2048,
        intermediate_size=6144,
        num_hidden_layers=48,
        num_attention_heads=32,
        num_key_value_heads=4,
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
    batch_size=8,
    sequence_length=4096,
)
PUBLISHED = (PALM_540B, LLAMA3_8B, LLAMA3_70B, QWEN3_30B_A3B)


class Gpt(NamedTuple):
    """A model with as many heads of keys as of queries, and an MLP of two matrices of 4h: layers, hidden size,
    vocabulary, sequence length and heads."""

    layers: int
    hidden: int
    vocabulary: int = 51200
    length: int = 2048
    heads: int = 128

    def sizes(self, batch: int = 1) -> dict[str, int]:
        """As the topic's inputs."""
        return {
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads,
            "head_dim": self.hidden // self.heads,
            "tie_word_embeddings": 1,
            "batch_size": batch,
            "sequence_length": self.length,
            "mlp_matrices": 2,
        }


GPT3_175B = Gpt(96, 12288, vocabulary=50257, heads=96)  # Brown et al. 2020, table 2.1
MT_NLG_530B = Gpt(105, 20480)  # Smith et al. 2022, section 2.3
MEGATRON_1T = Gpt(128, 25600, heads=160)  # Narayanan et al. 2021, table 1

# Korthikanti et al. 2022, tables 3 and 5: batch, GPUs, seconds an iteration with sequence parallelism and selective
# recomputation, MFU and HFU in percent of an A100's 312 TFLOP/s.
SELECTIVE = (
    (Gpt(48, 6144, heads=64), 4, 8, 1.10, 41.5, 43.7),
    (Gpt(96, 12288, heads=96), 64, 64, 13.75, 51.4, 52.8),
    (MT_NLG_530B, 280, 280, 37.83, 56.0, 57.0),
    (MEGATRON_1T, 512, 512, 71.49, 56.3, 57.0),
)
A100, TPU_V4, H800 = 312e12, 275e12, 989e12  # peak FLOP/s in bfloat16, without sparsity
