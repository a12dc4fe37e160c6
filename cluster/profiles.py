"""Cluster profiles: what to start, or where to connect. Validated; unknown keys refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

PROFILES = Path(__file__).with_name("profiles")


class ClusterError(Exception):
    """A cluster can not be had; the message says what to change."""


class Local(BaseModel):
    """Workers on this machine, one process each."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["local"] = "local"
    workers: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"  # auto: one a core
    memory_gb: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"  # of one worker; auto: an even share


class Address(BaseModel):
    """A scheduler that runs already."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["address"] = "address"
    address: str


Profile = Local | Address


def load_profile(name: str) -> Profile:
    """Profile by name (a file in cluster/profiles/), by path, or a scheduler's address.

    Raises
    ------
    ClusterError : no such profile, an unknown key, an impossible value
    """
    if name.startswith(("tcp://", "tls://")):
        return Address(address=name)
    path = Path(name) if "/" in name or name.endswith(".yaml") else PROFILES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROFILES.glob("*.yaml")))
        raise ClusterError(
            f"no cluster profile {name!r}: give one of {known}, the path of a .yaml file, or tcp://host:port"
        )
    try:
        content = yaml.safe_load(path.read_text()) or {}
        return Local.model_validate(content)
    except yaml.YAMLError as error:
        raise ClusterError(f"{path} is not YAML: {error}") from error
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise ClusterError(f"{path}: {faults}") from error
