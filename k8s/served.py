"""A file's model as Serve and the gateway are told of it, with references in place of this machine's folders."""

from __future__ import annotations

from typing import Any

from cluster import engine, tasks
from cluster.errors import InputError
from cluster.serving import model_application
from cluster.spec import Spec


def served(spec: Spec, *, attempt: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The application of a file, and what the gateway knows of the names that it answers to.

    A replica looks up what is served when it starts. After another training that is to happen anew, so `attempt`, which
    is all that a configuration can change without changing anything else, goes with the job; an adapter is then loaded
    anew while its engine goes on. Raises InputError.
    """
    row = tasks.servable(spec)
    if spec.serve.llm.onto:
        raise InputError(
            f"serve.llm.onto: {spec.serve.llm.onto}: on Kubernetes every file has an engine of its own; leave it out"
        )
    version = f"models:/{spec.name}@champion" if spec.data.train is not None else spec.model
    told = {
        "task": row.name,
        "version": version,
        "request": row.request,
        "response": row.response,
        "timeout_s": spec.serve.request_timeout_s,
        "idempotent": spec.serve.idempotent,
        **({"private": True} if spec.serve.private else {}),
    }
    if row.name != engine.TASK or not engine.adapted(spec):
        application = model_application(spec, model_uri=version, folder=version, attempt=attempt)
        return application, {spec.name: told}
    adapter = engine.adapter(version=version, folder=version, tag=f"champion-{attempt}" if attempt else "")
    application = model_application(spec, model_uri=spec.model, folder=spec.model, adapters={spec.name: adapter})
    base = f"{spec.name}:base"
    beside = {**told, "version": spec.model, "application": spec.name}
    return application, {spec.name: {**told, "parent": base}, base: beside}
