"""What a copy of a text model has imported when it has answered, and that what was kept from transformers is there
again. This fails where transformers or torch changed what serve.lean stands for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import serve_tiny as tiny

pytestmark = pytest.mark.slow  # torch in processes of their own

ANSWER = """
import json, sys
from pathlib import Path
from serve.app import Model

args = {"name": "spam", "task": "text-classification", "version": "1", "folder": sys.argv[1]}
model = Model({**args, "device": "cpu", "attempt": 0})
inputs, parameters = model.handler.decode_request(b'{"inputs": "win a prize"}', "application/json", {})
(answer,) = model.handler.encode_response(model.handler.predict(inputs), parameters)
seen = sorted(sys.modules)

from transformers.utils import is_sklearn_available, is_scipy_available
from transformers.utils.import_utils import is_torch_distributed_available
there = [is_sklearn_available(), is_scipy_available(), is_torch_distributed_available()]

import torch
from transformers.masking_utils import TransformGetItemToIndex
with TransformGetItemToIndex():
    first = torch.arange(3)[torch.tensor(1)].item()
compiled = torch.compile(lambda x: x + 1, backend="eager")(torch.ones(1)).item()
real = torch._dynamo.__file__
print(json.dumps({"answer": answer, "seen": seen, "there": there, "first": first, "compiled": compiled, "real": real}))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.bert(tmp_path_factory.mktemp("lean") / "bert")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict:
    command = [sys.executable, "-c", ANSWER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_copy_imports_what_it_needs(found: dict, folder: Path) -> None:
    seen = set(found["seen"])
    assert {"transformers.models.bert.modeling_bert", "torch", "tokenizers", "safetensors"} <= seen
    unused = {"sklearn", "scipy", "datasets", "mlflow", "sqlalchemy", "matplotlib", "evaluate", "peft", "deepspeed"}
    unused |= {"vllm", "triton", "optuna", "torch._dynamo", "torch._inductor", "torch.distributed.tensor"}
    unused |= {"torch.distributed.fsdp", "cluster.spec", "cluster.registry", "cluster.settings"}
    assert sorted(unused & seen) == []
    assert {row["label"]: row["score"] for row in found["answer"]} == pytest.approx(
        tiny.bert_scores(folder, "win a prize"), abs=1e-5
    )


def test_what_was_kept_away_is_there_for_everybody_else(found: dict) -> None:
    assert found["there"] == [True, True, True]
    assert found["first"] == 1  # by the part of the compiler that was to be imported when it is used
    assert found["compiled"] == 2
    assert found["real"].endswith("__init__.py")


def test_something_else_of_the_compiler_is_the_real_thing() -> None:
    code = (
        "import sys, torch; from serve import lean\n"
        "with lean._without_compiler():\n"
        "    mark = lambda: 1\n"
        "    assert torch._dynamo.disable(mark) is mark and torch.compiler.disable(recursive=False)(mark) is mark\n"
        "    assert 'torch._dynamo.eval_frame' not in sys.modules\n"
        "    assert torch._dynamo.reset.__module__ == 'torch._dynamo'\n"
        "    from torch._dynamo.utils import counters\n"
        "assert torch._dynamo.__file__ and torch._dynamo.disable(mark) is not mark"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


TABLE = """
import json, sys
from serve.app import Model

args = {"name": "iris", "task": "tabular-classification", "version": "1", "folder": sys.argv[1]}
model = Model({**args, "device": "cpu", "attempt": 0})
row = b'{"table": {"sepal": [5.1], "petal": [1.4], "garden": ["south"]}}'
inputs, parameters = model.handler.decode_request(row, "application/json", {})
answer = model.handler.encode_response(model.handler.predict(inputs), parameters)
seen = sorted(sys.modules)

from sklearn.utils import all_estimators
import sklearn.externals.array_api_compat.torch as bridge
print(json.dumps({"answer": answer, "seen": seen, "estimators": len(all_estimators()), "bridge": bridge.__name__}))
"""


def test_a_copy_of_a_table_model_has_no_torch(tmp_path: Path) -> None:
    """By way of skops and scikit-learn it had: this fails where either finds another way, or misses that one."""
    done = subprocess.run(
        [sys.executable, "-c", TABLE, str(tiny.table(tmp_path / "iris"))], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["answer"] == ["setosa"]
    assert not {"torch", "transformers", "cluster.spec"} & set(found["seen"])
    assert "sklearn.ensemble" in found["seen"]
    assert found["estimators"] > 150
    assert found["bridge"] == "sklearn.externals.array_api_compat.torch"
