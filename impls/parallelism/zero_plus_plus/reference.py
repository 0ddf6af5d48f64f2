"""ZeRO++: ZeRO-3 that sends less between groups of ranks, say nodes (Wang et al. 2023, §3).

Ψ weights of e bytes, N ranks in m groups of g neighbours; the weights are quantised to 8 bits, gradients to 4 or 8.

                  forward gather     backward gather       gradients              between groups, if e = 2
    ZeRO-3        all ranks, Ψe      all ranks, Ψe         all ranks, Ψe          Ψe + Ψe + Ψe     = 3Ψe
    qwZ   §3.1    all ranks, Ψ       all ranks, Ψ          as ZeRO-3              ½ + ½ + 1        = 2Ψe
    hpZ   §3.2    as ZeRO-3          in a group, Ψe        as ZeRO-3              1 + 0 + 1        = 2Ψe
    qgZ   §3.3    as ZeRO-3          as ZeRO-3             two hops, Ψ/2          1 + 1 + ¼        = 2.25Ψe
    ZeRO++        all ranks, Ψ       in a group, Ψe        two hops, Ψ/2          ½ + 0 + ¼        = 0.75Ψe

hpZ keeps, beside this rank's 1/N of the states, a *secondary partition*: 1/g of the weights, cut inside its group.

    rank         0     1   |   2     3      N = 4, g = 2
    primary      ¼     ¼   |   ¼     ¼      gathered by all ranks, once after each update
    secondary    ½     ½   |   ½     ½      a part of what was gathered; the step's later gathers stay in the group

What is computed. hpZ computes what ZeRO-3 computes. qwZ runs forward and backward pass with x̂ (quantisation.py) in the
place of the weights x and applies the gradient at x̂ to x. qgZ sums gradients that were quantised rank by rank, and once
more group by group (two_hops.py). All of it is deterministic, so a dense model can do the same: plain.py, the oracle.

How it is judged. Which of two codes an element near a tie gets depends on the last bits of what is rounded, and one
such decision moves it by a whole step of its block. In float64 no decision is in doubt: with the right blocks, hops and
sums a quantised gradient is the oracle's to the bit, a wrong one stands out; so sizes that divide nothing are judged in
float64. In lower precision the dense model's honest variants decide otherwise than float64 as well, and their floor
says how far that carries, farthest with 4 bits. The judge stays as strict as it is; an engine whose kernels flip a
decision that no variant flips would fail there by that one step, and its float64 case would have to tell.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh

from harness.spec import Topology, Workload
from impls.common.collectives import Exchange, free
from impls.common.mesh import device, groups
from impls.parallelism.zero import unit
from impls.parallelism.zero.reference import Zero
from impls.parallelism.zero_plus_plus.quantisation import decode, encode
from impls.parallelism.zero_plus_plus.two_hops import TwoHops


class Unit(unit.Unit):
    """A unit of ZeRO-3 whose messages have so many bits an element (0: they are not quantised).

    ``secondary`` [N · size / g] this rank's part of the weights inside its group, from a step's first gather to its
    last; there are ``gathers`` in a step.
    """

    def __init__(
        self,
        parameters: list[nn.Parameter],
        stage: int,
        group: dist.ProcessGroup,
        inside: dist.ProcessGroup,
        across: dist.ProcessGroup,
        weight_bits: int,
        gradient_bits: int,
        hierarchical: bool,
        gathers: int,
    ) -> None:
        super().__init__(parameters, stage, group)
        self.ranks, self.inside, self.across = group.size(), inside, across
        self.weight_bits, self.gradient_bits, self.hierarchical = weight_bits, gradient_bits, hierarchical
        self.secondary: Tensor | None = None
        self.gathers = self.left = gathers

    def gather(self) -> None:
        if self.full.untyped_storage().size():
            return
        self.full.untyped_storage().resize_(self.bytes)
        self.left -= 1
        self.arriving, group, shard = self.full, self.group, self.master.detach()
        if self.secondary is not None:  # hpZ
            send, group = self.secondary, self.inside
        elif self.weight_bits:  # qwZ
            send = encode(shard, self.weight_bits)
            self.arriving = send.new_empty(self.ranks * send.numel())
        else:
            send = shard.to(self.full.dtype)
        with torch.autograd._unsafe_preserve_version_counter(self.full):
            # The collective itself: what of it goes between groups is what the laws speak of.
            self.gathering = dist.all_gather_into_tensor(self.arriving, send, group=group, async_op=True), send

    def wait(self) -> None:
        if self.gathering is None:
            return
        super().wait()
        if self.arriving is not self.full:
            with torch.autograd._unsafe_preserve_version_counter(self.full):
                messages, shards = (t.view(self.ranks, -1) for t in (self.arriving, self.full))
                decode(messages, shards, self.weight_bits)
        del self.arriving
        if not self.left:
            self.secondary = None
        elif self.hierarchical and self.secondary is None:
            self.secondary = self.full.view(self.inside.size(), -1)[self.inside.rank()].clone()

    def reduce(self) -> unit.Reduction:
        assert self.send is not None
        send, self.send = self.send, None
        if not self.gradient_bits:  # parts go to their owners directly, as in each hop of qgZ
            receive = torch.empty_like(send[self.mine])
            return Exchange(receive, send, self.group), send, receive
        receive = torch.empty_like(self.master)
        hops = TwoHops(send, receive, self.inside, self.across, self.gradient_bits)  # qgZ
        free(send)  # what is under way is its codes
        return hops, send, receive

    def stepped(self) -> None:
        """The optimizer has stepped: what was gathered before is out of date."""
        self.secondary, self.left = None, self.gathers


class ZeroPlusPlus(Zero):
    def padding(self) -> int:
        """None that the laws do not count: messages are as long as the padded units make them."""
        return 0


def build(workload: Workload, topology: Topology, group: int, **techniques: int | bool) -> ZeroPlusPlus:
    mesh = init_device_mesh(device().type, (groups(topology, group), group), mesh_dim_names=("across", "inside"))
    hops = {name: mesh.get_group(name) for name in ("inside", "across")}
    return ZeroPlusPlus(workload, 3, make=partial(Unit, gathers=2 * workload.micro_batches, **hops, **techniques))
