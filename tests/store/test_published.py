"""What is published names no host, user, address, folder or secret, and stays readable."""

import getpass
import socket
from pathlib import Path

import pytest

from harness.store import published

ROOT = Path(__file__).parents[2]
TOKEN = "hf_" + "a1B2" * 8


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gpu-node17.cluster.example")
    monkeypatch.setattr(getpass, "getuser", lambda: "jdoe")
    monkeypatch.setenv("HOME", "/home/jdoe")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("could not reach gpu-node17.cluster.example: timed out", "could not reach HOST: timed out"),
        ("gpu-node17: rank 3 ended", "HOST: rank 3 ended"),
        ("gpu-node17", "HOST"),
        ("node worker-9 was lost with ranks 4 to 7: no answer", "node *** was lost with ranks 4 to 7: no answer"),
        ("srun: error: worker-9: task 3: Killed", "srun: error: ***: task 3: Killed"),
        ("connect to db1.prod.internal failed", "connect to *** failed"),
        ("PermissionError: owned by jdoe", "PermissionError: owned by USER"),
        ("mail jane.doe@example.com about it", "mail *** about it"),
        ("/home/jdoe/code/x.py and /home/other and ~/y", "~/code/x.py and ~ and ~/y"),
        ("connect [10.0.3.7]:29500 refused", "connect [***]:29500 refused"),
        ("from fe80::1ff:fe23:4567:890a to ::1", "from *** to ::1"),
        ("store postgresql://jdoe:s3cret@db.example.com:5432/runs?sslmode=no", "store postgresql://***"),
        ("proxy http://jdoe:s3cret@proxy:3128/ said no", "proxy http://***:3128/ said no"),
        ("GET https://files.example.com/a?x=1&token=s3cret", "GET https://files.example.com/a?x=1&token=***"),
        ("HF_TOKEN=s3cret WANDB_API_KEY=s3cret", "HF_TOKEN=*** WANDB_API_KEY=***"),
        (f"Invalid token {TOKEN}!", "Invalid token ***!"),
        ("Authorization: Bearer abcdef.0123456", "Authorization: Bearer ***"),
        (
            'File "/opt/e/lib/python3.11/site-packages/torch/nn/x.py", line 3',
            'File "site-packages/torch/nn/x.py", line 3',
        ),
        ("/opt/e/lib/python3.11/json/decoder.py:343: bad", "python3.11/json/decoder.py:343: bad"),
        (f'File "{ROOT}/impls/zero/reference.py", line 3', 'File "impls/zero/reference.py", line 3'),
        ("cannot open '/scratch/my project/w.bin'", "cannot open '…/w.bin'"),
        ("no space left in /scratch/someone", "no space left in …"),
        (
            f"pytest {ROOT}/suites --hosts=worker-8,worker-9 --store=sqlite:////srv/runs/a.db -k zero3",
            "pytest suites --hosts=*** --store=sqlite:///…/a.db -k zero3",
        ),
    ],
)
def test_a_text_says_nothing_of_the_machine(text: str, shown: str) -> None:
    assert published(text) == shown
    assert published({"reason": [text], text: 1}) == {"reason": [shown], shown: 1}
    assert published(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "zero3-deepspeed-dp2-fp32",
        "nvidia-cublas-cu12==12.8.4.1 and torch 2.13.0",
        "12.8.4.1",
        "took 12:34:56, 1.5 GB/s, 3 of 4 cases, forward/backward, at c10::Error",
        "listens on 127.0.0.1:29500 and 0.0.0.0",
        "https://github.com/deepspeedai/DeepSpeed/issues/1839",
        "pytest suites/ --topics zero --store sqlite:///a.db -k 'zero3 and a@b'",
        "impls/parallelism/zero/on_deepspeed.py:71 calls torch.nn.functional",
        "gradient of model.layers.0.self_attn.q_proj.weight is 2310 × the noise floor, allowed 3",
        "/dev/shm is full, says /usr/bin/df",
        "eos_token=<eos> and 128 tokens=4",
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    assert published(text) == text


def test_figures_and_nothing_stay_as_they_are() -> None:
    value = {"value": 1.5, "law": None, "ranks": [0, 1, True], "spans": [["F", 0, 1.0]], "none": {}}
    assert published(value) == value


def test_a_host_with_the_name_of_a_topic_does_not_rename_the_topic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "zero")
    assert published({"topic": "zero", "reason": "zero: not reached"}) == {
        "topic": "zero",
        "reason": "HOST: not reached",
    }
