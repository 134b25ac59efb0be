"""[cluster]: what a task of a sweep asks of Slurm or Ray."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Executor = Literal["local", "slurm", "ray"]
Text = Annotated[str, Meta(pattern=r"^[^\0\n\r]*\Z")]  # one line of a batch script
Natural = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[cluster]. Empty fields leave the choice to the cluster."""

    partition: Text = ""
    account: Text = ""
    qos: Text = ""
    time: Annotated[Text, Meta(min_length=1)] = "1:00:00"
    gpus_per_node: Natural = 0
    gres: Text = ""
    cpus: Natural = 0
    constraint: Text = ""
    parallel: Natural = 0
    pair: Literal["node", "none"] = "node"
    setup: list[Text] = []
    container: list[Text] = []
    sbatch: dict[Text, Text | int | bool] = {}
    address: Text = "auto"
    resources: dict[Text, Annotated[float, Meta(gt=0, le=1e9)]] = {}
