"""What Shoal's serving is measured against: the same model behind plain FastAPI, LitServe and Serve as it comes.

python tests/benchmarks/rivals.py KIND MODEL_FOLDER PORT MAX_BATCH_SIZE BATCH_WAIT_S [DTYPE]
"""

from __future__ import annotations

import sys
import time
from typing import Any

import litserve


class Plain:
    """The model as anybody would write it: what the three others serve."""

    def __init__(self, folder: str, dtype: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        torch.set_num_threads(1)
        self.torch = torch
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def __call__(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=512, return_tensors="pt")
        with self.torch.inference_mode():
            scores = self.model(**encoded).logits.float().softmax(-1).tolist()
        names = self.model.config.id2label
        rows = [[{"label": names[index], "score": score} for index, score in enumerate(row)] for row in scores]
        return [sorted(row, key=lambda one: -one["score"]) for row in rows]


def _fastapi(folder: str, port: int, batch: int, wait_s: float, dtype: str) -> None:
    import uvicorn
    from fastapi import FastAPI

    model, app = Plain(folder, dtype), FastAPI()

    @app.post("/predict")
    def predict(request: dict) -> list:
        return model([request["inputs"]])

    uvicorn.run(app, port=port, log_level="error", access_log=False)


class Api(litserve.LitAPI):
    """At the top of a module, because LitServe pickles it into another process."""

    folder, dtype = "", "float32"

    def setup(self, device: str) -> None:
        self.model = Plain(self.folder, self.dtype)

    def decode_request(self, request, **kwargs):  # LitServe makes of an annotation what to parse
        return request["inputs"]

    def predict(self, x: list[str], **kwargs: Any) -> list[Any]:
        return self.model(x)

    def encode_response(self, output: Any, **kwargs: Any) -> Any:
        return [output]


def _litserve(folder: str, port: int, batch: int, wait_s: float, dtype: str) -> None:
    # Its MCP part does not import with the mcp package that another dependency brings; nothing here uses it.
    litserve.server._MCP_AVAILABLE = False  # pyright: ignore[reportAttributeAccessIssue]
    api = Api(max_batch_size=batch, batch_timeout=wait_s)
    api.folder, api.dtype = folder, dtype
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=port, generate_client_file=False, log_level="error", num_api_servers=1)


def _serve(folder: str, port: int, batch: int, wait_s: float, dtype: str) -> None:
    import ray
    from ray import serve

    class Deployment:
        def __init__(self) -> None:
            self.model = Plain(folder, dtype)

        @serve.batch(max_batch_size=batch, batch_wait_timeout_s=wait_s)
        async def together(self, texts: list[str]) -> list:
            return [[row] for row in self.model(texts)]

        async def __call__(self, request: Any) -> Any:
            return await self.together((await request.json())["inputs"])  # pyright: ignore[reportCallIssue]

    ray.init(address="local", include_dashboard=False, num_cpus=4, object_store_memory=10**8, log_to_driver=False)
    serve.start(http_options={"port": port})
    serve.run(serve.deployment(max_ongoing_requests=64)(Deployment).bind(), route_prefix="/predict")
    while True:
        time.sleep(60)


if __name__ == "__main__":
    start = {"fastapi": _fastapi, "litserve": _litserve, "serve": _serve}[sys.argv[1]]
    dtype = sys.argv[6] if len(sys.argv) > 6 else "float32"
    start(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), dtype)
