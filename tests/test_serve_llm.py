"""A language model as a stranger meets it: real vLLM behind HAProxy and the gateway, unmodified clients, adapters that
come and go. One engine for the whole module, on a tiny model whose every token is known from transformers."""

import collections
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import llm_served_tiny as tiny
import psutil
import pytest
from llm_choking import CHOKING, PLAIN

from cluster import connect, embedded
from cluster.errors import InputError, NotFound
from cluster.spec import parse
from serve import run
from serve.applications import read
from serve.state import state
from serve.waiting import up

pytestmark = pytest.mark.slow
PROMPT = "hello there"
ENGINE = "num_cpus: 1, llm: {dtype: float32, kv_cache_gb: 0.25, max_num_seqs: 16"
TUNED = "data: {train: hf://a/b}\ntrain: {lora: {}}\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = tmp_path_factory.mktemp("llm")
    (home / "cluster.yaml").write_text("http: {max_body_mb: 1}\n")
    patch = pytest.MonkeyPatch()
    patch.setenv("SHOAL_HOME", str(home))
    with connect.session() as found:
        yield found
    patch.undo()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    base = tiny.llama(root / "base")
    other = tiny.llama(root / "other", seed=9)
    return {
        "base": base,
        "first": tiny.adapter(base, root / "first"),
        "second": tiny.adapter(base, root / "second", seed=5),
        "high": tiny.adapter(base, root / "high", rank=32),
        "other": other,
        "stranger": tiny.adapter(other, root / "stranger"),
        "wide": tiny.adapter(tiny.llama(root / "wider", hidden=192), root / "wide"),
    }


def plain(folders):
    return parse(f"name: tiny\ntask: text-generation\nmodel: {folders['base']}\nserve: {{{ENGINE}}}}}")


def tuned(folders, name="tiny", base="base", onto="", overrides=()):
    extra = f", onto: {onto}" if onto else ""
    head = f"name: {name}\ntask: text-generation\nmodel: {folders[base]}\n"
    return parse(f"{head}{TUNED}serve: {{{ENGINE}{extra}}}}}", overrides)


@pytest.fixture(scope="module")
def url(cluster, folders):
    endpoint = run.deploy(plain(folders), model_uri=str(folders["base"]), folder=folders["base"], cluster=cluster)
    assert (endpoint.name, endpoint.task, endpoint.state) == ("tiny", "text-generation", "RUNNING")
    return cluster.http_url


@pytest.fixture
def client(url):
    from openai import OpenAI

    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def complete(client, model, prompt=PROMPT, tokens=16):
    """The model that answered, and the ids of its tokens."""
    extra = {"return_token_ids": True}
    answer = client.completions.create(model=model, prompt=prompt, max_tokens=tokens, temperature=0, extra_body=extra)
    return answer.model, answer.choices[0].token_ids


def pids(cluster):
    return [
        (replica["actor_id"], replica["pid"])
        for deployment in read(cluster)["tiny"]["deployments"].values()
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING"
    ]


def metric(cluster, name, **labels):
    """The sum of a metric's series with these labels on Ray's port; None where there is none."""
    state = embedded.read(cluster.home)
    assert state is not None
    text = httpx.get(f"http://127.0.0.1:{state.metrics_port}/metrics", trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    found = [line for line in lines if all(f'{key}="{value}"' in line for key, value in labels.items())]
    return sum(float(line.rsplit(" ", 1)[1]) for line in found) if found else None


@contextlib.contextmanager
def load(url, model):
    """Requests to a model without a pause while the block runs; a counter of what came back."""
    seen, stop = collections.Counter(), threading.Event()

    def ask():
        with httpx.Client(trust_env=False, timeout=60) as http:
            while not stop.is_set():
                body = {"model": model, "prompt": PROMPT, "max_tokens": 16, "temperature": 0, "return_token_ids": True}
                answer = http.post(f"{url}/v1/completions", json=body)
                good = answer.status_code == 200
                seen[tuple(answer.json()["choices"][0]["token_ids"]) if good else answer.text] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_greedy_tokens_are_those_of_transformers(client, folders):
    for prompt in (PROMPT, "a", "the same engine, another prompt " * 8):
        assert complete(client, "tiny", prompt) == ("tiny", tiny.greedy(folders["base"], prompt))


def test_a_chat_streamed_and_whole_say_the_same(client, folders):
    from transformers import AutoTokenizer

    messages = [{"role": "user", "content": "hi"}]
    options = {"model": "tiny", "messages": messages, "max_tokens": 20, "temperature": 0}
    whole = client.chat.completions.create(**options).choices[0].message.content
    chunks = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**options, stream=True)]
    assert len([chunk for chunk in chunks if chunk]) > 1
    assert "".join(chunks) == whole
    tokenizer = AutoTokenizer.from_pretrained(folders["base"])
    prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert whole == tokenizer.decode(tiny.greedy(folders["base"], prompt, tokens=20), skip_special_tokens=True)


def test_a_schema_is_kept_as_openai_and_as_huggingface_ask_for_it(client, url):
    from huggingface_hub import InferenceClient

    schema = {"enum": ["a sail", "an oar"]}
    messages = [{"role": "user", "content": "choose"}]
    form = {"type": "json_schema", "json_schema": {"name": "choice", "schema": schema}}
    answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=30, response_format=form)
    assert json.loads(answer.choices[0].message.content or "") in schema["enum"]

    hub = InferenceClient(model=f"{url}/models/tiny")
    form: Any = {"type": "json_object", "value": schema}  # what it sends for its older kind of grammar
    answer = hub.chat_completion(messages, max_tokens=30, response_format=form)
    assert json.loads(answer.choices[0].message.content or "") in schema["enum"]


def test_errors_have_openais_shape(client, url):
    import openai

    with pytest.raises(openai.NotFoundError, match="did you mean tiny") as caught:
        complete(client, "tinny")
    assert caught.value.type == "NotFoundError"
    with pytest.raises(openai.NotFoundError, match="'tiny:verse' is not served"):
        complete(client, "tiny:verse")
    with pytest.raises(openai.BadRequestError, match="maximum context length is 2048 tokens"):
        complete(client, "tiny", "x" * 2100)
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="tiny", prompt=PROMPT, temperature=-1)
    for body, status, word in ((b"nope", 400, "JSON"), (b"{}", 400, "GET /v1/models"), (b"x" * 2**21, 413, "1 MiB")):
        for path in ("/v1/completions", "/models/tiny/v1/completions"):
            answer = httpx.post(f"{url}{path}", content=body, trust_env=False, timeout=20)
            if path == "/v1/completions" or status == 413:
                assert (answer.status_code, word in answer.json()["error"]["message"]) == (status, True), path
            assert 400 <= answer.status_code < 500
    for path in ("/models/tiny/v1/load_lora_adapter", "/v1/load_lora_adapter", "/m/tiny/v1/completions"):
        assert httpx.post(f"{url}{path}", json={}, trust_env=False).status_code == 404


@pytest.mark.parametrize("route", CHOKING)
def test_what_an_engine_could_choke_on_is_refused(url, route):
    with httpx.Client(trust_env=False, timeout=60) as http:
        answers = {}
        for extra in CHOKING[route]:
            body = json.dumps({**PLAIN[route], **extra}).encode()
            answers[json.dumps(extra)[:200]] = http.post(f"{url}/v1/{route}", content=body)
        assert {key: (one.status_code, one.text[:200]) for key, one in answers.items() if one.status_code != 400} == {}
        assert all(one.json()["error"]["message"] for one in answers.values())
        assert http.post(f"{url}/v1/{route}", json=PLAIN[route]).status_code == 200


def test_schemathesis_finds_no_5xx_on_openais_routes(url, tmp_path):
    document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    for route in CHOKING:
        body = document["paths"][f"/v1/{route}"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        # Short answers: what is looked for lies before them.
        body["properties"]["max_tokens"]["maximum"] = 4
        body["properties"]["n"]["maximum"] = 2
        body["required"].append("max_tokens")
    (tmp_path / "short.json").write_text(json.dumps(document))
    command = [str(Path(sys.executable).with_name("schemathesis")), "run", str(tmp_path / "short.json"), "--url", url]
    command += ["--phases", "coverage", "--seed", "1", "--no-color", "--request-timeout", "90"]
    command += ["--checks", "not_a_server_error,status_code_conformance,response_schema_conformance"]
    command += ["--continue-on-failure", "--warnings", "off", "--include-path-regex", "^/v1/"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
    line = next(line for line in found.stdout.splitlines() if "generated" in line)
    print(line.strip())
    assert int(line.split()[0]) > 300


def test_it_is_listed_and_told_of(client, url):
    listed = client.models.list().data
    assert [(model.id, model.max_model_len) for model in listed] == [("tiny", 2048)]
    assert client.models.retrieve("tiny").id == "tiny"
    document = httpx.get(f"{url}/openapi.json", trust_env=False).json()
    assert document["paths"]["/v1/chat/completions"]["post"]
    answer = httpx.post(f"{url}/models/tiny", json={"inputs": "hi"}, trust_env=False)
    assert (answer.status_code, "/v1/chat/completions" in answer.json()["error"]) == (400, True)
    origin = {"origin": "https://other.example"}
    answer = httpx.post(f"{url}/v1/completions", json={"model": "tiny", "prompt": "a"}, headers=origin, trust_env=False)
    assert "access-control-allow-origin" not in answer.headers


def test_whoever_goes_away_is_not_written_for(client, cluster):
    def unfinished():
        return sum(one["facts"]["unfinished"] for one in up(state(cluster)[0], "tiny"))

    written = metric(cluster, "ray_vllm_generation_tokens_total") or 0
    for base_url in (f"{cluster.http_url}/v1", f"{cluster.http_url}/models/tiny/v1"):
        way = client.with_options(base_url=base_url)
        extra = {"ignore_eos": True}
        stream = way.completions.create(model="tiny", prompt=PROMPT, max_tokens=2000, stream=True, extra_body=extra)
        next(iter(stream))
        end = time.monotonic() + 5
        while unfinished() != 1:
            assert time.monotonic() < end, f"{base_url}: is not being written"
        stream.close()
        end = time.monotonic() + 5
        while unfinished():
            assert time.monotonic() < end, f"{base_url}: goes on being written"
            time.sleep(0.02)
    # And one that waits for the whole answer.
    body = {"model": "tiny", "prompt": "b", "max_tokens": 2000, "ignore_eos": True}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{cluster.http_url}/v1/completions", json=body, timeout=0.3, trust_env=False)
    end = time.monotonic() + 5
    while unfinished():
        assert time.monotonic() < end, "goes on being written"
        time.sleep(0.02)
    # The engine itself has stopped, and says so for as long as it is idle.
    end = time.monotonic() + 45
    while (now := metric(cluster, "ray_vllm_generation_tokens_total") or 0) == written or metric(
        cluster, "ray_vllm_num_requests_running", model_name="tiny"
    ) != 0:
        assert time.monotonic() < end, "the engine goes on, or says nothing"
        time.sleep(0.5)
    assert metric(cluster, "ray_vllm_kv_cache_usage_perc", model_name="tiny") == 0
    assert now - written < 4000  # of 6000 that were asked for


def test_adapters_come_change_and_go_while_the_engine_answers(client, cluster, folders, url):
    import openai

    said = {key: tiny.greedy(folders["base"], PROMPT, adapter=folders[key]) for key in ("first", "second")}
    base = tiny.greedy(folders["base"], PROMPT)
    assert len({tuple(tokens) for tokens in (base, *said.values())}) == 3
    replicas = pids(cluster)
    options = {"cluster": cluster}

    with load(url, "tiny:base") as seen:
        # The file's own adapter answers for its name, the untouched base beside it.
        run.deploy(tuned(folders), model_uri="models:/tiny/1", folder=folders["first"], **options)
        assert complete(client, "tiny") == ("tiny@1", said["first"])
        assert complete(client, "tiny:base") == ("tiny:base", base)
        # A newer version answers from then on: nothing of the one before is met again.
        swapped = time.monotonic()
        endpoint = run.deploy(tuned(folders), model_uri="models:/tiny/2", folder=folders["second"], **options)
        swapped = time.monotonic() - swapped
        assert complete(client, "tiny") == ("tiny@2", said["second"])
        assert endpoint.version == "models:/tiny/2"
        # Another file's adapter goes onto the same engine.
        verse = tuned(folders, "verse", onto="tiny")
        endpoint = run.deploy(verse, model_uri="models:/verse/1", folder=folders["first"], **options)
        assert (endpoint.name, endpoint.url) == ("tiny:verse", f"{url}/models/tiny:verse")
        assert complete(client, "tiny:verse") == ("tiny:verse@1", said["first"])
        assert complete(client, "tiny") == ("tiny@2", said["second"])
        assert [model.id for model in client.models.list().data] == ["tiny", "tiny:base", "tiny:verse"]
        assert [endpoint.name for endpoint in run.endpoints(cluster)] == ["tiny", "tiny:verse"]
        run.deploy(verse, model_uri="models:/verse/1", folder=folders["first"], **options)  # again: nothing happens
        # One that says that it was trained from other weights, although they have the same shapes.
        lost = shutil.copytree(folders["second"], folders["second"].with_name("lost"))
        (lost / "shoal.json").write_text(json.dumps({"base": "x", "base_digest": "0" * 64}))
        with pytest.raises(InputError, match="trained from other weights"):
            run.deploy(tuned(folders), model_uri="models:/tiny/3", folder=lost, **options)
        assert complete(client, "tiny") == ("tiny@2", said["second"])
        # What cannot be loaded is refused, and what answers goes on.
        for key, base_key, words in (
            ("high", "base", "rank 32, and its engine takes 16"),
            ("stranger", "other", "holds other weights"),
            ("wide", "base", "was made for another model"),
            ("base", "base", "is a whole model"),
        ):
            with pytest.raises(InputError, match=words):
                run.deploy(
                    tuned(folders, "verse", base_key, onto="tiny"),
                    model_uri="models:/verse/2",
                    folder=folders[key],
                    **options,
                )
        none = tuned(folders, overrides=["serve.llm.max_loras=0"])
        with pytest.raises(InputError, match=r"max_loras: 0: .* is an adapter, and its engine takes none"):
            run.deploy(none, model_uri="models:/tiny/3", folder=folders["second"], **options)
        with pytest.raises(NotFound, match="no language model 'nobody' is served; these are: tiny"):
            run.deploy(tuned(folders, "verse", onto="nobody"), model_uri="x", folder=folders["first"], **options)
        assert complete(client, "tiny:verse") == ("tiny:verse@1", said["first"])
        # Away with them.
        run.remove("verse", cluster)
        with pytest.raises(openai.NotFoundError):
            complete(client, "tiny:verse")
        with pytest.raises(NotFound, match="verse: not served; these are: tiny"):
            run.remove("verse", cluster)
    # The first requests came before there was a name for the base.
    answers = {tokens: count for tokens, count in seen.items() if isinstance(tokens, tuple)}
    assert set(answers) == {tuple(base)}
    assert all("tiny:base" in text and "is not served" in text for text in seen if isinstance(text, str))
    run.deploy(plain(folders), model_uri=str(folders["base"]), folder=folders["base"], **options)
    assert complete(client, "tiny") == ("tiny", base)
    assert pids(cluster) == replicas, "a replica was replaced"
    print(
        f"\n{sum(answers.values())} requests answered meanwhile; a new version was live {swapped:.2f} s after its run"
    )


def test_a_real_model_knows_paris_and_keeps_a_schema(client, cluster):
    folder = Path(os.environ.get("SHOAL_TEST_SAMPLES", "/nowhere")) / "models" / "smollm2"
    if not folder.is_dir():
        pytest.skip("SHOAL_TEST_SAMPLES names no folder in which `shoal samples smollm2` was run")
    spec = parse(f"name: smol\ntask: text-generation\nmodel: {folder}\nserve: {{llm: {{max_model_len: 1024}}}}")
    run.deploy(spec, model_uri=str(folder), folder=folder, cluster=cluster)
    ask = [{"role": "user", "content": "What is the capital of France?"}]
    options = {"model": "smol", "temperature": 0, "max_tokens": 40}
    assert "Paris" in client.chat.completions.create(messages=ask, **options).choices[0].message.content
    shape = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    form = {"type": "json_schema", "json_schema": {"name": "city", "schema": {**shape, "additionalProperties": False}}}
    answer = client.chat.completions.create(messages=ask, response_format=form, **options)
    assert list(json.loads(answer.choices[0].message.content)) == ["city"]
    # Two engines side by side, each by its own name.
    assert {model.id for model in client.models.list().data} == {"smol", "tiny"}
    run.remove("smol", cluster)


def test_a_dead_engine_is_replaced(client, cluster, folders):
    (actor, pid), *others = pids(cluster)
    assert not others
    (core,) = [child for child in psutil.Process(pid).children(recursive=True) if "EngineCore" in child.name()]
    core.send_signal(signal.SIGKILL)
    end = time.monotonic() + 150
    while actor in dict(pids(cluster)) or not pids(cluster):
        assert time.monotonic() < end, "the replica without an engine was kept"
        time.sleep(0.5)
    while True:
        with contextlib.suppress(Exception):
            assert complete(client, "tiny") == ("tiny", tiny.greedy(folders["base"], PROMPT))
            break
        assert time.monotonic() < end
        time.sleep(0.5)
    assert not psutil.pid_exists(core.pid)


def test_taken_down_it_leaves_no_process(cluster, url):
    (replica,) = pids(cluster)
    family = psutil.Process(replica[1]).children(recursive=True)
    run.remove("tiny", cluster)
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not [process for process in alive if "EngineCore" in process.name()]
    assert httpx.get(f"{url}/v1/models", trust_env=False).json() == {"object": "list", "data": []}
    assert Path(f"/proc/{replica[1]}/cmdline").exists() is False or "Llm" not in psutil.Process(replica[1]).name()
