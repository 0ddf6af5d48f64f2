"""ZeRO-Offload and ZeRO-Infinity: model states in the host's memory and in files."""

from harness.spec import Card, Claim, Engine, Law
from impls.parallelism.zero_offload.grid import GRID

HERE = "impls.parallelism.zero_offload"

CARD = Card(
    name="zero_offload",
    title="ZeRO-Offload and ZeRO-Infinity: states on the host and in files",
    sources=(
        "Ren et al. 2021, ZeRO-Offload: Democratizing Billion-Scale Model Training, §3, §4, §5.1",
        "Rajbhandari et al. 2021, ZeRO-Infinity: Breaking the GPU Memory Wall for Extreme Scale Deep Learning, §5, §6",
    ),
    variants={
        "offload_optimizer": {"stage": 2, "states_on": "host", "weights_on": "device"},
        "offload_params": {"stage": 3, "states_on": "host", "weights_on": "host"},
        "nvme_optimizer": {"stage": 2, "states_on": "files", "weights_on": "device"},
        "nvme_states": {"stage": 3, "states_on": "files", "weights_on": "host"},
        "nvme_params": {"stage": 3, "states_on": "files", "weights_on": "files"},
    },
    engines={
        "reference": Engine(f"{HERE}.reference:build"),
        "torch": Engine(f"{HERE}.on_torch:build", variants=("offload_optimizer", "offload_params")),
        "deepspeed": Engine(f"{HERE}.on_deepspeed:build", requires=("deepspeed>=0.16",), compiles=f"{HERE}.operators"),
        "zenflow": Engine(
            f"{HERE}.on_deepspeed:build_zenflow",
            requires=("deepspeed>=0.16",),
            variants=("offload_optimizer",),
            compiles=f"{HERE}.operators",
        ),
    },
    topologies=("dp1", "dp2", "dp3"),
    grid=GRID,
    laws=(
        Law(
            "memory",
            "states",
            f"{HERE}.laws:states",
            0.05,
            "Ren et al. 2021, §3.3: 2Ψ on the device + 14Ψ/N on the host, one memory on CPU ranks; of files buffers",
            direction="at_most",
        ),
        Law("traffic", "bytes", f"{HERE}.laws:traffic", 0.0, "Ren et al. 2021, §4.2: that of ZeRO's stage"),
    ),
    claims=(
        Claim(
            "paper_13b",
            "13 B parameters train on one V100 of 32 GB",
            "Ren et al. 2021, abstract and §3.3",
            f"{HERE}.claims:paper_13b",
        ),
    ),
)
