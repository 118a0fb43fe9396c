"""Running verbs on a Ray cluster that is there already, as jobs of its Jobs API. Imports no Ray."""

from cluster.submit.client import Job, Jobs
from cluster.submit.package import Package, pack
from cluster.submit.target import Target, find
from cluster.submit.versions import check

__all__ = ["Job", "Jobs", "Package", "Target", "check", "find", "pack"]
