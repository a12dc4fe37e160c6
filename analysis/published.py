"""Results in the form that the paper's authors released, and back.

JSON {"point_estimate": {name: value}, "bootstrap_statistics": [{name: value} a replicate]} with names
`<group>_weighted_mean` and `<group>_relative_to_average`; the overall mean is `Estimate_Total_weighted_mean`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from analysis.estimate import TOTAL_KEY
from pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
_MEAN = "_weighted_mean"
_RELATIVE = "_relative_to_average"


@dataclass(frozen=True)
class Released:
    """One analysis: point estimates and replicates by group. A group without an estimate is missing (NaN)."""

    keys: tuple[str, ...]
    total: float
    means: Floats  # (groups,)
    replicate_totals: Floats  # (replicates,)
    replicate_means: Floats  # (replicates, groups)

    @property
    def relative(self) -> Floats:
        """Point estimates relative to the overall mean, (groups,)."""
        return self.means / self.total

    @property
    def replicate_relative(self) -> Floats:
        """Replicates relative to their own overall mean, (replicates, groups)."""
        return self.replicate_means / self.replicate_totals[:, None]

    def to_json(self) -> str:
        """Text of the released form; a missing estimate is left out."""
        replicates = [
            _named(self.keys, total, means)
            for total, means in zip(self.replicate_totals, self.replicate_means, strict=True)
        ]
        return json.dumps(
            {"point_estimate": _named(self.keys, self.total, self.means), "bootstrap_statistics": replicates}
        )

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Released:
        """Analysis from the released form; `where` names the file in errors.

        Raises
        ------
        SourceError : not JSON, not of this form, or a value that is no number
        """
        try:
            content = json.loads(text)
            point, replicates = content["point_estimate"], content["bootstrap_statistics"]
            keys = tuple(name.removesuffix(_MEAN) for name in point if name.endswith(_MEAN))
            groups = tuple(key for key in keys if key != TOTAL_KEY)
            return cls(
                keys=groups,
                total=float(point[TOTAL_KEY + _MEAN]),
                means=_values(point, groups),
                replicate_totals=np.array([float(one[TOTAL_KEY + _MEAN]) for one in replicates]),
                replicate_means=np.array([_values(one, groups) for one in replicates]).reshape(-1, len(groups)),
            )
        except json.JSONDecodeError as error:
            raise SourceError(f"{where} is not whole JSON ({error}): fetch or write it again") from error
        except (KeyError, TypeError, ValueError) as error:
            raise SourceError(
                f"{where} is not a released result: expected point_estimate and bootstrap_statistics with "
                f"{TOTAL_KEY}{_MEAN} in each; {type(error).__name__}: {error}"
            ) from error


def _named(keys: Sequence[str], total: float, means: Floats) -> dict[str, float]:
    known = [(key, float(mean)) for key, mean in zip(keys, means, strict=True) if not np.isnan(mean)]
    named = {TOTAL_KEY + _MEAN: float(total)}
    named |= {key + _MEAN: mean for key, mean in known}
    return named | {key + _RELATIVE: mean / float(total) for key, mean in known}


def _values(named: dict[str, float], keys: Sequence[str]) -> Floats:
    return np.array([float(named.get(key + _MEAN, np.nan)) for key in keys])
