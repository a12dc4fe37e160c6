"""Replicates of a release, drawn from what it holds and nothing else.

A study's own replicates tell of withheld areas. All groups share their draws, so that a borough's replicates less those
of its other neighborhoods are those of the last; and an area of few images sways even a whole borough by steps of one
image, so that the spread alone shows how many of them are positive. So a release draws anew, from a city that every
reader of its tables can make up: shown areas have the images that are shown, withheld ones what `imagine` says. No seed
is secret, and these replicates tell nothing that the tables do not. docs/release.md has the attacks and measurements.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from patrolscope.analysis.estimators.rates import Panel
from patrolscope.pipeline.seeds import stream

Floats = npt.NDArray[np.float64]
Whole = npt.NDArray[np.int64]

SEED = 0  # public: whoever has the tables may draw the same replicates
_BLOCK = 100  # replicates at a time: 5 MB of areas


def imagine(
    areas: pd.DataFrame, places: pd.DataFrame, overall: float, probabilities: tuple[float, float], minimum: int
) -> tuple[Whole, Floats]:
    """Images of each area, and the share of them that is positive, as far as a release tells; 0 and 0 without images.

    The withheld areas of a neighborhood share what its shown ones leave of its images, and have its level. Where the
    neighborhood is withheld, too, an area has half the minimum of images, and the overall level.

    Parameters
    ----------
    areas : `patrolscope.analysis.disclosure.release.RELEASED_AREAS`
    places : released level and images of each neighborhood, by name; its images are those where people live
    overall : released level of everyone
    probabilities : Pr(police vehicle) of a positive and of a negative image
    """
    withheld, lives = areas["withheld"] == "true", areas["persons"] > 0
    counts = areas[["images", "positives"]].fillna(0).astype(np.float64).assign(withheld=withheld)
    of_place = counts[lives].groupby(areas["neighborhood"]).sum()
    each = (places["images"] - of_place["images"]) / of_place["withheld"]
    of_withheld = areas["neighborhood"].map(each).astype(np.float64).fillna(minimum / 2).clip(lower=1).round()
    images = counts["images"].mask(withheld, of_withheld).to_numpy().astype(np.int64)
    positive, negative = probabilities
    levels = areas["neighborhood"].map(places["level"]).astype(np.float64).fillna(overall).to_numpy()
    # With equal probabilities levels say nothing of shares, and shares change no level.
    share = np.clip((levels - negative) / ((positive - negative) or 1.0), 0, 1)
    return images, np.where(withheld, share, counts["positives"] / np.maximum(images, 1))


def redraw(
    images: Whole, shares: Floats, wanted: list[Panel], probabilities: tuple[float, float], drawn: Floats
) -> list[Floats]:
    """How far each replicate of everyone and of each group lies from its level, (1 + groups, replicates) of each panel.

    The images of every area are drawn again, as many as it has.

    Parameters
    ----------
    images, shares : (areas,) from `imagine`
    drawn : (2, replicates) Pr(police vehicle) of negative and positive images in each replicate
    """
    positive, negative = probabilities
    seen = images > 0
    levels = np.where(seen, negative + (positive - negative) * shares, np.nan)[:, None]
    middles = [panel.means(levels) for panel in wanted]
    blocks: list[list[Floats]] = [[] for _ in wanted]
    for start in range(0, drawn.shape[1], _BLOCK):
        numbers = range(start, min(start + _BLOCK, drawn.shape[1]))
        again = np.full((len(images), len(numbers)), np.nan)
        for column, number in enumerate(numbers):
            generator = stream(SEED, "replicates of a release", number)
            share = generator.binomial(images[seen], shares[seen]) / images[seen]
            again[seen, column] = drawn[0, number] + (drawn[1, number] - drawn[0, number]) * share
        for panel, middle, made in zip(wanted, middles, blocks, strict=True):
            made.append(panel.means(again) - middle)
    return [np.concatenate(made, axis=1) for made in blocks]
