"""Answer extraction: the number that a completion ends with."""

from harness.spec import Card, Engine, Functions

HERE = "tests.examples.extraction"

CARD = Card(
    name="extraction",
    title="Extracting final answers",
    sources=("Cobbe et al. 2021, Training Verifiers to Solve Math Word Problems, §2: #### before the answer",),
    variants={"last_number": {"strict": False}, "after_marks": {"strict": True}},
    engines={"reference": Engine(f"{HERE}.reference:build")},
    topologies=("dp1",),
    contract=Functions(f"{HERE}.problem", exact=("accuracy",)),
)
