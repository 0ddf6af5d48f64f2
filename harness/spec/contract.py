"""What a topic's engines are, which its card says, and the modules that pose their work.

They are named here and imported where they are used: collection needs no torch.
"""

from dataclasses import dataclass

DENSE = "impls.common.plain"


@dataclass(frozen=True)
class Trainers:
    """Each engine is a :class:`harness.spec.Trainer`.

    ``plain`` is the module of the dense model, the oracle of every engine:
    ``build(workload, topology, permute, math, **options)`` makes it on one process, as a Trainer;
    ``options(workload, topology, **variant)`` gives its options for a variant, or None where :data:`DENSE`
    is its oracle;
    ``initial(workload, **options)`` yields name and float32 tensor of all that ``parameters()`` of an engine returns,
    as it is before the first step.

    ``data`` is the module of ``batch(workload, step, **options)``: the global batch of a step, on the CPU. Its fields
    are the topic's own affair; :class:`harness.spec.Batch` has the usual ones. ``observes``: the dense model has an
    ``observe()``, with which the engines' are compared. ``replays``: a step of the dense model is one of the workload's
    optimizer on ``gradients()``, so that an engine's updates can be replayed.
    """

    plain: str = DENSE
    data: str = "impls.common.data"
    observes: bool = False
    replays: bool = True


@dataclass(frozen=True)
class Functions:
    """Each engine is a :class:`harness.spec.Function`.

    ``problem`` is a module that fulfils :class:`harness.spec.Problem`. ``telling`` names the arguments of a variant
    that change what is computed; None: all do. ``exact`` names the outputs that must be equal, whatever the precision;
    texts, integers and booleans must be equal without being named.
    """

    problem: str
    telling: tuple[str, ...] | None = None
    exact: tuple[str, ...] = ()


@dataclass(frozen=True)
class Flows:
    """Each engine is a :class:`harness.spec.Flow`, judged by how it learns.

    ``score`` says what its curves show, ``better`` whether a good one is ``"higher"`` or ``"lower"``; ``seeds`` is how
    often an engine runs, ``budget`` how many samples a run may take.
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
