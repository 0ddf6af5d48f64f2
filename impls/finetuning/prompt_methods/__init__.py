"""A frozen model adapted by few new parameters: bottleneck adapters, prefixes, soft prompts and (IA)³."""

from harness.spec import Card, Claim, Engine, Law, Trainers
from impls.finetuning.prompt_methods.grid import GRID

HERE = "impls.finetuning.prompt_methods"
PROMPT = {"method": "prompt", "tokens": 5}

CARD = Card(
    name="prompt_methods",
    title="Adapters, prefix tuning, prompt tuning, P-tuning and (IA)³",
    sources=(
        "Houlsby et al. 2019, Parameter-Efficient Transfer Learning for NLP, arXiv:1902.00751, §2.1",
        "Li & Liang 2021, Prefix-Tuning, arXiv:2101.00190, §4.2 equation 3, §4.3",
        "Lester et al. 2021, The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv:2104.08691, §2",
        "Liu et al. 2021, GPT Understands, Too (P-tuning), arXiv:2103.10385, §3.2",
        "Liu et al. 2022, Few-Shot Parameter-Efficient Fine-Tuning (T-Few), arXiv:2205.05638, §3.3",
    ),
    variants={
        "bottleneck_adapters": {"method": "bottleneck", "m": 8},
        "prefix_tuning": {"method": "prefix", "tokens": 5},
        # Reparametrised: the prefix is the output of an MLP.
        "prefix_tuning_mlp": {"method": "prefix", "tokens": 5, "width": 24},
        "prompt_tuning": PROMPT,
        # The labels that an engine is given begin with the first token, which no text precedes, as where labels are a
        # copy of the tokens. The textbook does not count it.
        "prompt_tuning_unmasked": {**PROMPT, "unmasked": True},
        "p_tuning": {"method": "p_tuning", "tokens": 5, "width": 24},
        "ia3": {"method": "ia3"},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "peft": Engine(
            f"{HERE}.on_peft:build",
            requires=("peft>=0.17", "transformers>=5.0"),
            variants=(
                "prefix_tuning",
                "prefix_tuning_mlp",
                "prompt_tuning",
                "prompt_tuning_unmasked",
                "p_tuning",
                "ia3",
            ),
        ),
        "adapters": Engine(
            f"{HERE}.on_adapters:build", ("adapters>=1.3",), ("bottleneck_adapters",), environment="adapters-suites"
        ),
    },
    topologies=("dp1", "dp2"),
    contract=Trainers(plain=f"{HERE}.plain", flops=f"{HERE}.laws:added_flops"),
    grid=GRID,
    laws=(
        Law("memory", "states", f"{HERE}.laws:states", 0.05, "no gradients and states of frozen weights"),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "one all-reduce of the new parameters' gradients"),
    ),
    claims=(
        Claim(
            "adapter_share",
            "Adapters: 2md + d + m parameters each, 3.6 % of a task's model",
            "Houlsby et al. 2019, §2.1 and abstract",
            f"{HERE}.claims:adapters",
        ),
        Claim(
            "prefix_share",
            "A prefix: 2·L·T·d parameters, 0.1 % of the model",
            "Li & Liang 2021, abstract and §4.3",
            f"{HERE}.claims:prefix",
        ),
    ),
)
