"""Variables that a shell, a launcher or a container sets and that engines read.

Ranks do not inherit variables that would change an engine's work or its place among others, for which the engine would
be blamed. Variables that may change figures but belong to the machine are inherited, and stored in the run's record.
"""

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase

# name or pattern → the reason why ranks do not inherit it
SCRUBBED = {
    # set by launchers: another job's ranks and addresses
    "RANK": "another job's ranks",
    "LOCAL_RANK": "another job's ranks",
    "NODE_RANK": "another job's ranks",
    "GROUP_RANK": "another job's ranks",
    "GROUP_WORLD_SIZE": "another job's ranks",
    "ROLE_*": "torchrun's ranks",
    "CROSS_*": "Horovod's ranks",
    "WORLD_SIZE": "another job's ranks",
    "LOCAL_WORLD_SIZE": "another job's ranks",
    "LOCAL_SIZE": "another job's ranks",
    "MASTER_*": "another job's address",
    "NCCL_COMM_ID": "another job's address",
    "TORCHELASTIC_*": "torchrun's agent; torch.distributed then joins its store",
    "PET_*": "torchrun's options",
    "OMPI_*": "Open MPI's ranks; DeepSpeed and fairscale read them",
    "PMI_*": "MPICH's ranks",
    "PMIX_*": "PMIx's ranks",
    "PMI[0-9]_*": "MPICH's ranks",
    "MPI_*": "MPI's ranks; Accelerate reads them",
    "MV2_*": "MVAPICH2's ranks; Accelerate reads them",
    "I_MPI_*": "Intel MPI's ranks",
    "HYDRA_*": "MPICH's launcher",
    "PRTE_*": "Open MPI's launcher",
    "SLURM_*": "Slurm's ranks; Megatron-Core reads its job",
    "SLURMD_*": "Slurm's ranks",
    "PBS_*": "PBS's ranks",
    "LSB_*": "LSF's ranks",
    "JSM_*": "LSF's ranks",
    "FLUX_*": "Flux's ranks",
    "HOROVOD_*": "horovodrun's ranks; its adapter sets its own",
    "SM_*": "SageMaker's ranks; Transformers reads them",
    "SMDATAPARALLEL_*": "SageMaker's ranks; Transformers reads them",
    "AZ_BATCH*": "Azure's ranks; DeepSpeed reads them",
    "DLWS_*": "Azure's job; DeepSpeed reads it",
    "DLTS_*": "Azure's job; DeepSpeed reads it",
    # settings of engines
    "ACCELERATE_*": "Accelerate's precision, accumulation, plugins and device",
    "FSDP_*": "Accelerate's FSDP settings",
    "PARALLELISM_CONFIG_*": "Accelerate's mesh",
    "MEGATRON_*": "Accelerate's Megatron settings",
    "DEEPSPEED_*": "DeepSpeed's settings",
    "DS_*": "DeepSpeed's settings, among them its accelerator",
    "NVTE_*": "Transformer Engine's choice of kernels; Megatron-Core reads it",
    "FLASH_ATTENTION_*": "FlashAttention's choice of kernels; Transformers reads it",
    "TRANSFORMERS_SDPA_*": "Transformers' choice of kernels",
    "USE_HUB_KERNELS": "Transformers' choice of kernels",
    "ENABLE_NCCL_BASE_COLLECTIVES": "fairscale's choice of collectives",
    "XLA_*": "another device: Accelerate and Transformers choose it",
    "USE_TORCH_XLA": "another device: Accelerate and Transformers choose it",
    "PJRT_*": "another device: Accelerate and Transformers choose it",
    "PT_HPU_*": "another device: Accelerate and Transformers choose it",
    # settings of PyTorch and Python for which no engine is responsible
    "NVIDIA_TF32_OVERRIDE": "float32 would be TF32 whatever an engine asks for",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "float32 would be TF32 whatever an engine asks for",
    "TORCH_DISTRIBUTED_DEBUG": "extra collectives that no engine requests",
    "PYTHONWARNINGS": "an engine's warnings would be its errors",
    "PYTHONOPTIMIZE": "an engine's assertions would not be made",
}
# Matching variables that belong to the machine: without it DeepSpeed could not compile its operators.
KEPT = {"DS_SKIP_CUDA_CHECK", "DS_IGNORE_CUDA_DETECTION", "DS_NVCC_THREADS"}
# Variables set in every rank, whatever the shell has.
SET = {
    "GLOO_SOCKET_IFNAME": "lo",  # otherwise gloo looks up the host name's address, which may not resolve
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin occupy the cores that other ranks need
    "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the query for CUDA must not initialise it before the fork
}
# Variables that ranks inherit and that may change figures.
TOLD = (
    "ATEN_*",
    "BLIS_*",
    "CUBLAS*",
    "CUDA_*",
    "CUDNN_*",
    "DNNL_*",
    "GLIBC_TUNABLES",
    "GLOO_*",
    "GOMP_*",
    "KMP_*",
    "LD_PRELOAD",
    "MALLOC_*",
    "MKL_*",
    "NCCL_*",
    "NVIDIA_*",
    "OMP_*",
    "ONEDNN_*",
    "OPENBLAS_*",
    "PYTORCH_*",
    "TORCH*",
    "TRITON_*",
    "UCC_*",
    "UCX_*",
)
# Numbers, names and lists of them; not paths, addresses or secrets.
HARMLESS = re.compile(r"(?!.*\d+\.\d+\.\d+\.\d+)[\w.,:;=+^ -]{0,100}")
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL")


def _matches(name: str, patterns: Mapping[str, str] | tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def inherited(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that ranks inherit."""
    return {name: value for name, value in environment.items() if name in KEPT or not _matches(name, SCRUBBED)} | SET


def told(environment: Mapping[str, str]) -> dict[str, str]:
    """Inherited variables that may change figures, for a record that is published: a value that may be a path, an
    address or a secret is left out; its name is kept."""
    return {
        name: value if HARMLESS.fullmatch(value) and not SECRET.search(name) else "(not recorded)"
        for name, value in sorted(inherited(environment).items())
        if _matches(name, TOLD) and name not in SET
    }
