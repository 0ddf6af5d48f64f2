"""A bandit that learns: policy gradients on arms of unknown reward."""

from harness.spec import Card, Engine, Flows, Grid, Row

HERE = "tests.examples.bandit"

CARD = Card(
    name="bandit",
    title="REINFORCE on a bandit",
    sources=("Williams 1992, Simple Statistical Gradient-Following Algorithms, §4, equation 4",),
    variants={"reinforce": {"baseline": True}},
    engines={"reference": Engine(f"{HERE}.reference:run"), "autograd": Engine(f"{HERE}.on_autograd:run")},
    topologies=("dp1",),
    contract=Flows("reward", seeds=5, budget=2000),
    grid=Grid((Row("tiny", "fp32", True),), timed=()),
)
