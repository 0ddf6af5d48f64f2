"""The variables of a shell that ranks inherit, and those that are recorded."""

import pytest

from harness.spec import variables


@pytest.mark.parametrize(
    "name",
    [
        "ACCELERATE_MIXED_PRECISION",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "PMI_RANK",
        "PMI2_SIZE",
        "MPI_LOCALRANKID",
        "SLURM_PROCID",
        "TORCHELASTIC_RUN_ID",
        "WORLD_SIZE",
        "MASTER_ADDR",
        "FSDP_OFFLOAD_PARAMS",
        "PARALLELISM_CONFIG_TP_SIZE",
        "DS_ACCELERATOR",
        "DEEPSPEED_TIMEOUT",
        "NVTE_FLASH_ATTN",
        "NVIDIA_TF32_OVERRIDE",
        "PYTHONWARNINGS",
    ],
)
def test_variables_that_would_change_an_engines_work_are_not_inherited(name: str) -> None:
    assert name not in variables.inherited({name: "1"})
    assert variables.told({name: "1"}) == {}


def test_variables_that_the_machine_needs_are_inherited() -> None:
    needed = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "TMPDIR": "/scratch",
        "LD_LIBRARY_PATH": "/lib",
        "CUDA_VISIBLE_DEVICES": "1",
        "CUDA_HOME": "/cuda",
        "NCCL_SOCKET_IFNAME": "eth0",
        "HF_HOME": "/models",
        "HF_HUB_OFFLINE": "1",
        "TRITON_CACHE_DIR": "/cache",
        "TORCH_EXTENSIONS_DIR": "/cache",
        "DS_SKIP_CUDA_CHECK": "1",
        "PYTHONPATH": ".",
    }
    assert variables.inherited(needed) == needed | variables.SET


def test_variables_of_every_rank_are_not_recorded_as_the_shells() -> None:
    assert variables.inherited({"OMP_NUM_THREADS": "9"})["OMP_NUM_THREADS"] == "1"
    assert variables.told({"OMP_NUM_THREADS": "9"}) == {}


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("ATEN_CPU_CAPABILITY", "avx2", True),
        ("CUDA_VISIBLE_DEVICES", "", True),
        ("CUDA_VISIBLE_DEVICES", "GPU-8f1c,3", True),
        ("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True", True),
        ("NCCL_ALGO", "^Tree", True),
        ("GOMP_CPU_AFFINITY", "0-3 5", True),
        ("LD_PRELOAD", "/home/me/libjemalloc.so", False),
        ("NCCL_TOPO_FILE", "C:\\topo.xml", False),
        ("UCX_TCP_BRIDGE_ADDR", "10.1.2.3:80", False),
        ("TORCH_API_KEY", "abc", False),
        ("TORCH_LOGS", "x" * 200, False),
        ("MKL_VERBOSE", "1\nme@example.org", False),
    ],
)
def test_variables_that_may_change_figures_are_recorded_without_secrets(name: str, value: str, shown: bool) -> None:
    assert variables.told({name: value}) == {name: value if shown else "(not recorded)"}


def test_variables_that_change_no_figure_are_not_recorded() -> None:
    assert variables.told({"HOME": "/home/me", "EDITOR": "vi", "PGPASSWORD": "secret"}) == {}
