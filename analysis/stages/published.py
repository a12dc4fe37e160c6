"""Reader and writer of results in the format of the paper's authors.

The format is JSON, {"point_estimate": {name: value}, "bootstrap_statistics": [{name: value}, ...]}, one mapping per
replicate, with names `<group>_weighted_mean` and `<group>_relative_to_average`. The city average is
`Estimate_Total_weighted_mean`.
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
# Relative tolerance between a stored relative rate and the quotient of the two stored means.
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class Released:
    """Point estimates and replicates of one analysis.

    Attributes
    ----------
    keys : tuple of str
        Names of the groups.
    total : float
        City average of the analysis.
    means : ndarray of float64, shape (n_groups,)
        Deployment rates; NaN without an estimate.
    replicate_totals : ndarray of float64, shape (n_replicates,)
        City average in each replicate.
    replicate_means : ndarray of float64, shape (n_replicates, n_groups)
        Deployment rates in each replicate; NaN if the replicate has no image of the group.
    """

    keys: tuple[str, ...]
    total: float
    means: Floats
    replicate_totals: Floats
    replicate_means: Floats

    @property
    def relative(self) -> Floats:
        """Relative rates, shape (n_groups,); NaN if the city average is 0."""
        return _ratio(self.means, np.float64(self.total))

    @property
    def replicate_relative(self) -> Floats:
        """Relative rates per replicate, each by its own city average, shape (n_replicates, n_groups)."""
        return _ratio(self.replicate_means, self.replicate_totals[:, None])

    def to_json(self) -> str:
        """Format as JSON, without missing estimates and without replicates that lack a city average."""
        return "".join(self.json_parts())

    def json_parts(self) -> Iterator[str]:
        """Yield the JSON text in parts, one per replicate, so that the whole text is never in memory."""
        yield f'{{"point_estimate": {json.dumps(_named(self.keys, self.total, self.means))}, "bootstrap_statistics": ['
        separator = ""
        for number in np.flatnonzero(~np.isnan(self.replicate_totals)):
            named = _named(self.keys, float(self.replicate_totals[number]), self.replicate_means[number])
            yield separator + json.dumps(named)
            separator = ", "
        yield "]}"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> Released:
        """Parse an analysis; groups that a replicate omits are NaN there.

        Parameters
        ----------
        text : str or bytes
            Content of the file.
        where : str
            Name of the file, for errors.

        Raises
        ------
        SourceError
            If the text is not JSON or not in this format, a value is not a probability, or a replicate has a group
            without a point estimate.
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
    """Read the result files of a folder.

    Parameters
    ----------
    folder : str
        Path or fsspec URL: the authors' plot_data/, or estimates/ of a study.

    Returns
    -------
    results : dict of str to Released
        Results per analysis, in the paper's order.
    missing : list of str
        Names of missing files.

    Raises
    ------
    SourceError
        If the folder has none of the files, or a file is invalid.
    """
    try:
        fs, root = fsspec.url_to_fs(folder)
    except ValueError as error:
        raise SourceError(f"cannot open {folder} ({error})") from error
    if not fs.isdir(root):
        raise SourceError(f"{folder} is not a folder; expected one with the released JSON files")
    present = {name: file for name, file in PUBLISHED_FILES.items() if fs.isfile(f"{root}/{file}")}
    if not present:
        files = _some(PUBLISHED_FILES.values())
        advice = "give a folder with the released JSON files, or estimates/ of a study"
        for below in ("estimates", "plot_data"):
            if fs.isdir(f"{root}/{below}"):
                advice = f"did you mean {folder.rstrip('/')}/{below}?"
        raise SourceError(f"{folder} has none of the {len(PUBLISHED_FILES)} result files ({files}); {advice}")
    results = {}
    for name, file in present.items():
        where = f"{folder.rstrip('/')}/{file}"
        results[name] = Released.from_json(fs.cat_file(f"{root}/{file}"), where=where)
        labels = group_labels(name)
        if labels and not labels.keys() & set(results[name].keys):
            raise SourceError(
                f"{where} has the groups {_some(results[name].keys)}; expected some of {_some(labels)}: "
                "check that this is the file of the analysis"
            )
    return results, [file for name, file in PUBLISHED_FILES.items() if name not in present]


def _ratio(means: Floats, totals: Floats | np.float64) -> Floats:
    """Divide means by the city average; NaN where that is 0."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.where(totals == 0, np.nan, means / totals))


def _named(keys: Sequence[str], total: float, means: Floats) -> dict[str, float]:
    known = [(key, float(mean)) for key, mean in zip(keys, means, strict=True) if not np.isnan(mean)]
    named = {TOTAL_KEY + _MEAN: float(total)}
    named |= {key + _MEAN: mean for key, mean in known}
    return named | ({key + _RELATIVE: mean / float(total) for key, mean in known} if total > 0 else {})


def _parts(text: str | bytes, where: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Parse point estimates and replicates, each a mapping of names to values not yet checked."""
    try:
        content = json.loads(text, parse_int=float)
    except json.JSONDecodeError as error:
        raise SourceError(f"{where} is not valid JSON ({error}); download or write it again") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"{where} is not text ({error}); download or write it again") from error
    except RecursionError as error:
        raise SourceError(f"{where} is nested too deeply; expected the format of the released files") from error
    parts = (content.get("point_estimate"), content.get("bootstrap_statistics")) if isinstance(content, dict) else ()
    match parts:
        case (dict() as point, list() as replicates) if all(isinstance(named, dict) for named in replicates):
            return point, replicates
    raise SourceError(
        f"{where} is not a released result; expected point_estimate, a mapping of names to values, and "
        "bootstrap_statistics, a list of such mappings"
    )


def _values(named: dict[str, Any], keys: Sequence[str], where: str) -> Floats:
    """Return the city average and the mean of each group, shape (1 + n_groups,); NaN for omitted groups."""
    total = TOTAL_KEY + _MEAN
    if total not in named:
        raise SourceError(f"{where} has no {total}; expected the format of the released files")
    if strange := named.keys() - {total, *(key + kind for key in keys for kind in (_MEAN, _RELATIVE))}:
        raise SourceError(
            f"{where} has {_some(strange)}; expected, for each group of point_estimate, <group>{_MEAN} and "
            f"<group>{_RELATIVE}"
        )
    for name, value in named.items():
        if not isinstance(value, float) or not math.isfinite(value):  # Python's json module accepts NaN and Infinity
            raise SourceError(f"{where}: {name} is {value!r}; expected a number")
    means = np.array([named[total], *(named.get(key + _MEAN, np.nan) for key in keys)], dtype=np.float64)
    relative = np.array([named.get(key + _RELATIVE, np.nan) for key in keys], dtype=np.float64)
    if (means > 1).any() or (means < 0).any():
        raise SourceError(f"{where}: a weighted mean is out of range; expected probabilities")
    if means[0] == 0 and not np.isnan(relative).all():
        raise SourceError(f"{where}: {total} is 0, but relative rates are present; use an unmodified copy")
    if means[0] > 0 and not np.allclose(means[1:], relative * means[0], rtol=_TOLERANCE, atol=0, equal_nan=True):
        wrong = keys[
            int(np.argmin(np.isclose(means[1:], relative * means[0], rtol=_TOLERANCE, atol=0, equal_nan=True)))
        ]
        raise SourceError(
            f"{where}: {wrong + _RELATIVE} is not {wrong + _MEAN} divided by {total}; the file was "
            "modified; use an unmodified copy"
        )
    return means


def _some(names: Iterable[str]) -> str:
    shown = sorted(names)
    return ", ".join(map(repr, shown[:3])) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
