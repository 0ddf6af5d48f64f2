"""Megatron-Core in a rank: its process groups for a topology and, without a GPU, its device names redirected.

Megatron-Core (0.16) uses the device "cuda" and CUDA's generator for random states, but nothing that it computes here
needs a GPU. The redirect changes no arithmetic, no collective and no shape.
"""

import functools
import json
import logging
import warnings
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Any

import torch
from torch import Tensor

from harness.spec import Topology
from impls.engines import cuda_on_cpu

logging.getLogger("megatron.core").setLevel(logging.WARNING)
with warnings.catch_warnings():
    # The environment's record already tells that Transformer Engine, Apex and CUDA are absent.
    warnings.simplefilter("ignore")
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
    from megatron.core.tensor_parallel import random as megatron_random


def differences(*configurations: Any) -> str:
    """The fields of Megatron's configurations that are not at their defaults, as JSON."""
    found = {}
    for each in configurations:
        mine = {field.name: getattr(each, field.name) for field in fields(each) if field.default is not MISSING}
        at_default = {field.name: field.default for field in fields(each)}
        found[type(each).__name__] = {n: value for n, value in mine.items() if value != at_default[n]}
    return json.dumps(found, default=lambda value: getattr(value, "__name__", str(value)))


def start(topology: Topology, chunks: int = 1, seed: int = 0, instances: int = 1, expert_tp: int | None = None) -> None:
    """Opens the process groups of a topology, with adjacent tensor-parallel ranks, and seeds the ranks' random states.
    ``chunks``: stages per rank of an interleaved pipeline; ``instances`` of the distributed optimizer share the
    data-parallel ranks, neighbours together; ``expert_tp`` ranks share an expert, as many as a dense matrix by default.

    Must be called in every rank before any other part of Megatron. A second call replaces the groups.
    """
    if not torch.cuda.is_available():
        _redirect_to_cpu()
    if parallel_state.model_parallel_is_initialized():
        parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=topology.tp,
        pipeline_model_parallel_size=topology.pp,
        virtual_pipeline_model_parallel_size=chunks if chunks > 1 else None,
        context_parallel_size=topology.cp,
        expert_model_parallel_size=topology.ep,
        expert_tensor_parallel_size=expert_tp,
        num_distributed_optimizer_instances=instances,
        order="tp-cp-ep-dp-pp",
        create_gloo_process_groups=False,  # only its checkpoints use them
    )
    model_parallel_cuda_manual_seed(seed)


@functools.cache
def _redirect_to_cpu() -> None:
    """Applies to the rest of this process: ranks are fresh processes, and no other engine runs in them."""
    # parallel_state, param_and_grad_buffer, layers, mappings, attention: device=torch.cuda.current_device().
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[return-value]
    # optimizer, clip_grads, grad_scaler, transformer.utils: a literal device="cuda".
    for name in ("tensor", "zeros", "ones"):
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    # optimizer, distrib_optimizer, clip_grads compare param.type() with "torch.cuda.FloatTensor".
    Tensor.type = _cuda_type(Tensor.type)
    # p2p_communication waits after a batch of messages; distributed_data_parallel and param_and_grad_buffer communicate
    # on a stream if there are several instances of the distributed optimizer.
    cuda_on_cpu.redirect()
    # jit: it would spend seconds compiling code that runs for microseconds.
    torch.compiler.set_stance("force_eager")
    # tensor_parallel.random: the states of dropout and of parallel initialisation.
    torch.cuda.manual_seed = torch.manual_seed
    torch.cuda.get_rng_state = lambda *_args, **_kwargs: torch.get_rng_state()
    megatron_random._get_cuda_rng_state = torch.cuda.get_rng_state
    megatron_random._set_cuda_rng_state = lambda state, *_args, **_kwargs: torch.set_rng_state(state)
    # It warns if the CPU's generator moved inside a fork; here that is the generator it forks.
    logging.getLogger(megatron_random.__name__).setLevel(logging.ERROR)


def _on_cpu(factory: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @functools.wraps(factory)
    def make(*args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        return factory(*args, device="cpu" if str(device).startswith("cuda") else device, **kwargs)

    return make


def _cuda_type(original: Callable[..., Any]) -> Callable[..., Any]:
    def named(self: Tensor, *args: Any, **kwargs: Any) -> Any:
        found = original(self, *args, **kwargs)
        return found.replace("torch.", "torch.cuda.", 1) if isinstance(found, str) else found

    return named
