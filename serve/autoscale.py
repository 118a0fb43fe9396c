"""What Serve's controller asks how many replicas a model should have (AutoscalingPolicy.policy_function).

Ray sends this module to the controller by value, so it holds nothing, and all it needs it imports when it is called.
What of Ray this stands on, and a test holds on to:
- a policy that is a class is made once for each configuration, with policy_kwargs, and is called at every step of the
  control loop with an AutoscalingContext, also while no replica runs or some start;
- with all delays 0 its number is taken at once, within min_replicas and max_replicas;
- where it raises, the step ends for all applications: so it never does.
"""

from __future__ import annotations

from typing import Any


class Policy:
    """One model's. `keys` are cluster.serving.scaling's; `version` tells which model the replicas are of."""

    def __init__(self, *, version: str, keys: dict[str, Any]) -> None:
        self.version = version
        self.keys = keys

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The number that the Keeper decided last, and no state."""
        target = context.target_num_replicas
        try:
            from serve.scaling.controller import WANTED

            running = context.current_num_replicas
            return WANTED.of(context.app_name, self.keys, self.version, target=target, running=running), {}
        except Exception:
            import logging

            logging.getLogger("ray.serve").exception("%s: scaling failed", context.app_name)
            return target, {}
