"""Results in the form that the paper's authors released, and back.

JSON {"point_estimate": {name: value}, "bootstrap_statistics": [{name: value} a replicate]} with names
`<group>_weighted_mean` and `<group>_relative_to_average`; the overall mean is `Estimate_Total_weighted_mean`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import numpy.typing as npt

from patrolscope.analysis.estimators.rates import PUBLISHED_FILES, TOTAL_KEY, group_labels
from patrolscope.pipeline.errors import SourceError

Floats = npt.NDArray[np.float64]
_MEAN = "_weighted_mean"
_RELATIVE = "_relative_to_average"
# A relative level is stored beside the two means that it is the quotient of: both must say the same, but for rounding.
_SAME = 1e-9


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
        """Point estimates relative to the overall mean, (groups,); missing where that is 0."""
        return _ratio(self.means, np.float64(self.total))

    @property
    def replicate_relative(self) -> Floats:
        """Replicates relative to their own overall mean, (replicates, groups)."""
        return _ratio(self.replicate_means, self.replicate_totals[:, None])

    def to_json(self) -> str:
        """Text of the released form; a missing estimate, and a replicate without an overall mean, is left out."""
        return "".join(self.json_parts())

    def json_parts(self) -> Iterator[str]:
        """The same text in parts, a replicate each: thousands of replicates need not be held as text."""
        yield f'{{"point_estimate": {json.dumps(_named(self.keys, self.total, self.means))}, "bootstrap_statistics": ['
        known = np.flatnonzero(~np.isnan(self.replicate_totals))
        for place, at in enumerate(known):
            named = _named(self.keys, float(self.replicate_totals[at]), self.replicate_means[at])
            yield (", " if place else "") + json.dumps(named)
        yield "]}"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Released:
        """Analysis from the released form; `where` names the file in errors.

        A group that a replicate does not touch is not named there, and missing.

        Raises
        ------
        SourceError : not JSON, not of this form, a value that is no probability, a replicate with a group that the
            point estimates do not have
        """
        point, replicates = _parts(text, where)
        keys = tuple(name.removesuffix(_MEAN) for name in point if name.endswith(_MEAN) and name != TOTAL_KEY + _MEAN)
        values = _values(point, keys, f"{where}, point_estimate")
        replicated = np.array(
            [
                _values(named, keys, f"{where}, bootstrap_statistics {number}")
                for number, named in enumerate(replicates, 1)
            ]
        ).reshape(-1, len(keys) + 1)
        return cls(keys, float(values[0]), values[1:], replicated[:, 0], replicated[:, 1:])


def read_released(folder: str) -> tuple[dict[str, Released], list[str]]:
    """Results that lie in a folder, by analysis in the paper's order, and the names of the files that it lacks.

    Parameters
    ----------
    folder : path or fsspec URL; the authors' plot_data/, or estimates/ of a study

    Raises
    ------
    SourceError : the folder has none of the files, or one of them can not be read
    """
    try:
        fs, root = fsspec.url_to_fs(folder)
    except ValueError as error:
        raise SourceError(f"{folder} can not be opened: {error}") from error
    if not fs.isdir(root):
        raise SourceError(f"{folder} is no folder: name one that holds the released JSON files")
    there = {name: file for name, file in PUBLISHED_FILES.items() if fs.isfile(f"{root}/{file}")}
    if not there:
        files = _some(PUBLISHED_FILES.values())
        advice = "name a folder that holds the released JSON files, or the estimates/ folder of a study"
        for below in ("estimates", "plot_data"):
            if fs.isdir(f"{root}/{below}"):
                advice = f"did you mean {folder.rstrip('/')}/{below}?"
        raise SourceError(f"{folder} has none of the {len(PUBLISHED_FILES)} result files ({files}): {advice}")
    results = {}
    for name, file in there.items():
        where = f"{folder.rstrip('/')}/{file}"
        results[name] = Released.from_json(fs.cat_file(f"{root}/{file}"), where=where)
        labels = group_labels(name)
        if labels and not labels.keys() & set(results[name].keys):
            raise SourceError(
                f"{where} has the groups {_some(results[name].keys)}; expected some of {_some(labels)}: "
                "it is another file under this name"
            )
    return results, [file for name, file in PUBLISHED_FILES.items() if name not in there]


def _ratio(means: Floats, totals: Floats | np.float64) -> Floats:
    """Means by their overall mean; missing where that is 0: nothing is then a multiple of it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(totals == 0, np.nan, means / totals))


def _named(keys: Sequence[str], total: float, means: Floats) -> dict[str, float]:
    known = [(key, float(mean)) for key, mean in zip(keys, means, strict=True) if not np.isnan(mean)]
    named = {TOTAL_KEY + _MEAN: float(total)}
    named |= {key + _MEAN: mean for key, mean in known}
    return named | ({key + _RELATIVE: mean / float(total) for key, mean in known} if total > 0 else {})


def _parts(text: str | bytes, where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Point estimates and replicates, each a mapping of names to anything."""
    try:
        content = json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is not whole JSON ({error}): fetch or write it again") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is not text ({error}): fetch or write it again") from error
    parts = (content.get("point_estimate"), content.get("bootstrap_statistics")) if isinstance(content, dict) else ()
    match parts:
        case (dict() as point, list() as replicates) if all(isinstance(named, dict) for named in replicates):
            return point, replicates
    raise SourceError(
        f"{where} is not a released result: expected point_estimate, which maps names to values, and "
        "bootstrap_statistics, a list of the same"
    )


def _values(named: dict[str, Any], keys: Sequence[str], where: str) -> Floats:
    """The overall mean and the mean of each group, (1 + groups,); a group that is not named is missing."""
    total = TOTAL_KEY + _MEAN
    if total not in named:
        raise SourceError(f"{where} has no {total}: it is not of the released form")
    if strange := named.keys() - {total, *(key + kind for key in keys for kind in (_MEAN, _RELATIVE))}:
        raise SourceError(
            f"{where} has {_some(strange)}: expected, of each group of point_estimate, <group>{_MEAN} and "
            f"<group>{_RELATIVE}"
        )
    for name, value in named.items():
        if not isinstance(value, float) or not math.isfinite(value):  # Python's JSON knows NaN and Infinity
            raise SourceError(f"{where}: {name} is {value!r}, expected a number")
    means = np.array([named[total], *(named.get(key + _MEAN, np.nan) for key in keys)], dtype=np.float64)
    relative = np.array([named.get(key + _RELATIVE, np.nan) for key in keys], dtype=np.float64)
    if (means > 1).any() or (means < 0).any():
        raise SourceError(f"{where}: weighted means must be probabilities")
    if means[0] == 0 and not np.isnan(relative).all():
        raise SourceError(f"{where}: {total} is 0, and nothing is a multiple of it: take a good copy")
    if means[0] > 0 and not np.allclose(means[1:], relative * means[0], rtol=_SAME, atol=0, equal_nan=True):
        wrong = keys[int(np.argmin(np.isclose(means[1:], relative * means[0], rtol=_SAME, atol=0, equal_nan=True)))]
        raise SourceError(
            f"{where}: {wrong + _RELATIVE} is not {wrong + _MEAN} divided by {total}: the file was changed, "
            "take a good copy"
        )
    return means


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(map(repr, shown[:3])) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
