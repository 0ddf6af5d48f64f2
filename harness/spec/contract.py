"""The contracts: the kind of a topic's engines, and the modules that define their work.

They are named here and imported where they are used: collection needs no torch.
"""

from dataclasses import dataclass

DENSE = "impls.common.plain"


@dataclass(frozen=True)
class Trainers:
    """Each engine is a :class:`harness.spec.Trainer`.

    ``plain`` is the module of the dense model, the oracle of every engine:
    ``build(workload, topology, permute, math, **options)`` makes it on one process, as a Trainer;
    ``options(workload, topology, **variant)`` returns its options for a variant, or None if the variant computes the
    same as :data:`DENSE`;
    ``initial(workload, **options)`` yields the name and float32 tensor of each entry of an engine's ``parameters()``,
    as it is before the first step.

    ``data`` is the module of ``batch(workload, step, **options)``, which returns a step's global batch, on the CPU.
    The topic defines its fields; :class:`harness.spec.Batch` has the usual ones. ``reads`` says what a workload's
    ``data`` must hold: ``"text"`` (:mod:`harness.spec.text`) or ``"conversations"``
    (:mod:`harness.spec.conversations`). ``observes``: the dense model has an
    ``observe()``, and the engines' values are compared with its own; where a value is called ``skipped``, a step of
    which it is 1 must change nothing. ``replays``: a step of the dense model is one of the workload's optimizer on
    ``gradients()``, in float32 or wider, so that an engine's updates can be replayed: in all variants, in none, or
    where the named ``"module:function"`` says so of the dense model's options. ``flops`` is a ``"module:function"``,
    called as ``flops(workload, **variant)``: the model FLOPs that a variant adds to those of the workload's decoder in
    a step.
    """

    plain: str = DENSE
    data: str = "impls.common.data"
    reads: str = "text"
    observes: bool = False
    replays: bool | str = True
    flops: str = ""


@dataclass(frozen=True)
class Functions:
    """Each engine is a :class:`harness.spec.Function`.

    ``problem`` is a module that fulfils :class:`harness.spec.Problem`. ``telling`` names the arguments of a variant
    that change the result; None: all of them. ``exact`` names the outputs that must be equal, whatever the precision;
    texts, integers and booleans must be equal anyway. ``weighed``: the engines' memory is compared; it says nothing
    where they count or plan the work of others. ``flops`` is ``"module:function"`` of a module without torch:
    ``function(workload, **variant)`` counts the FLOPs of a step, forward and backward; without it no share of the
    ceiling is told.
    """

    problem: str
    telling: tuple[str, ...] | None = None
    exact: tuple[str, ...] = ()
    weighed: bool = True
    flops: str = ""


@dataclass(frozen=True)
class Flows:
    """Each engine is a :class:`harness.spec.Flow`, judged by its learning curve.

    ``score`` names the quantity of the curves, and ``better`` is ``"higher"`` or ``"lower"``. An engine runs once for
    each of ``seeds`` seeds, and a run takes at most ``budget`` samples.
    """

    score: str
    better: str = "higher"
    seeds: int = 5
    budget: int = 1000

    def __post_init__(self) -> None:
        if self.better not in ("higher", "lower"):
            raise ValueError(f"better is {self.better!r}, which is neither 'higher' nor 'lower'")


Contract = Trainers | Functions | Flows
COMMON = Trainers()  # the work of most topics
