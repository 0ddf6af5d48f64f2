"""The main use case with real input: a Qwen3 folder and real text, trained by four engines, compared and reported."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from harness.spec import ModelConfig, Workload
from harness.store import Store
from impls.common.hf import write_folder
from impls.common.weights import initial

ROOT = Path(__file__).parents[1]
ENGINES = {"reference", "torch", "deepspeed", "megatron"}
CONFIG = ModelConfig(vocab_size=600, hidden_size=96, intermediate_size=256, num_hidden_layers=2)
WORK = """
weights = "model"
data = "corpus.txt"
batch_size = 8
sequence_length = 48
steps = 24
optimizer = "adamw"
lr = 2e-3
weight_decay = 0.1
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workload file, a Hugging Face folder with a newly trained tokenizer, and this project's own prose."""
    folder = tmp_path_factory.mktemp("job")
    prose = "\n\n".join(path.read_text() for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("harness/*.py"))])
    (folder / "corpus.txt").write_text(prose)
    write_folder(folder / "model", CONFIG, initial(Workload(model=CONFIG)), torch.float32, max_shard_bytes=500_000)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator([prose], trainers.BpeTrainer(vocab_size=CONFIG.vocab_size, show_progress=False))
    tokenizer.save(str(folder / "model" / "tokenizer.json"))
    (folder / "prose.toml").write_text(WORK)
    return folder


def test_four_engines_train_a_qwen3_folder_on_text_and_are_compared(folder: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(ROOT / "suites"), "-q", "-p", "no:cacheprovider"]
    command += ["--workload", "prose.toml", "--topics", "zero", "--topologies", "dp2", "-k", "zero1"]
    command += ["--engines", ",".join(sorted(ENGINES))]
    command += ["--measures", "parity,memory,traffic,quality", "--store", "job.db", "--report", "report"]
    command += ["--single-file"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    store = Store.open(str(folder / "job.db"), create=False)
    curves = store.records(measure="quality")
    assert {record["engine"] for record in curves} == ENGINES, done.stdout
    for record in curves:
        assert record["verdict"] == "pass", record["reason"]
        losses = record["detail"]["losses"]
        assert len(losses) == 24
        assert losses[-1] < losses[0] - 0.5, f"{record['engine']} learns nothing: {losses}"
    for record in store.records(measure="parity"):
        assert record["verdict"] == "pass", (record["case"], record["reason"])
    page = (folder / "report" / "index.html").read_text()
    assert all(engine in page for engine in ENGINES)
    assert "zero1-deepspeed-dp2-fp32-prose" in page
