"""The request as plain data: topics, cases, workloads, topologies. No torch, no pytest."""

from harness.spec.case import Case
from harness.spec.contract import Flows, Functions, Trainers
from harness.spec.finding import Finding, Symptom
from harness.spec.grid import Grid, Row
from harness.spec.measure import Needs, Occasion
from harness.spec.measurement import VERDICTS, Measurement, assessed, measured
from harness.spec.model import ModelConfig, MoeConfig, RopeScaling
from harness.spec.topic import Card, Claim, Engine, Law
from harness.spec.topology import Topology
from harness.spec.trainer import Batch, Curves, Flow, Function, Problem, Span, Spans, Trainer, Unsupported
from harness.spec.workload import DTYPES, TORCH_NAMES, Workload

__all__ = [
    "DTYPES",
    "TORCH_NAMES",
    "VERDICTS",
    "Batch",
    "Card",
    "Case",
    "Claim",
    "Curves",
    "Engine",
    "Finding",
    "Flow",
    "Flows",
    "Function",
    "Functions",
    "Grid",
    "Law",
    "Measurement",
    "ModelConfig",
    "MoeConfig",
    "Needs",
    "Occasion",
    "Problem",
    "RopeScaling",
    "Row",
    "Span",
    "Spans",
    "Symptom",
    "Topology",
    "Trainer",
    "Trainers",
    "Unsupported",
    "Workload",
    "assessed",
    "measured",
]
