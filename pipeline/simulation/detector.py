"""Simulated detector of given precision and recall, whose calibration is the same in all areas (docs/method.md).

An image is classified positive with probability q, which follows from the true rate at its location. It then shows
police with probability p_positive or p_negative, regardless of location. Solving
rate = q * p_positive + (1 - q) * p_negative for q gives q = (rate - p_negative) / (p_positive - p_negative).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.errors import SettingsError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

OFFICER, VEHICLE = 0, 1  # class numbers of the reference study's detector

# These values give the published AUC of about 0.98 and average precision of about 0.82 (tests/unit/test_simulate.py).
# Powers of a uniform variable: below 1, scores concentrate near the top of their range; above 1, near the bottom.
_TRUE_POSITIVE_POWER = 0.5
_FALSE_POSITIVE_POWER = 1.6
_MISSED_POWER = 1.0
_TRUE_NEGATIVE_POWER = 4.0
_MISSED_WITH_BOX = 0.8  # share of negative images that show police and have a box with a low score
_TRUE_NEGATIVE_WITH_BOX = 0.03
_SECOND_VEHICLE = 0.15  # share of images with a vehicle box that have another, weaker one
_OFFICER = 0.003  # share of all images with a police officer
LOWEST_SCORE = 0.01  # minimum score of the detector in the reference study


@dataclass(frozen=True)
class Detector:
    """Calibration of the detector as counts in the validation set, and its threshold."""

    images: int  # in the validation set
    positive: int
    true_positive: int
    missed: int  # negative images that show police
    threshold: float

    @property
    def p_positive(self) -> float:
        """Positive predictive value: Pr(shows police | positive)."""
        return self.true_positive / self.positive

    @property
    def p_negative(self) -> float:
        """False omission rate: Pr(shows police | negative)."""
        return self.missed / (self.images - self.positive)

    def positive_probability(self, rate: Floats) -> Floats:
        """Return Pr(positive) of images that show police with probability `rate`."""
        return (rate - self.p_negative) / (self.p_positive - self.p_negative)

    def detect(self, rate: Floats, generator: np.random.Generator) -> tuple[Flags, Flags]:
        """Draw which images are positive and which show police, shape (n,) each, from their true rates (n,)."""
        positive = generator.random(len(rate)) < self.positive_probability(rate)
        shows = generator.random(len(rate)) < np.where(positive, self.p_positive, self.p_negative)
        return positive, shows

    def detect_exactly(self, rate: Floats, generator: np.random.Generator) -> tuple[Flags, Flags]:
        """Draw the validation set like `detect`, but with the exact counts, so that calibration on it is exact."""
        positive, shows = np.zeros((2, self.images), dtype=np.bool_)
        # The smallest of exponential variables divided by their weights are a weighted sample without replacement
        # (Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006).
        order = np.argsort(generator.standard_exponential(self.images) / self.positive_probability(rate), kind="stable")
        positive[order[: self.positive]] = True
        shows[generator.permutation(order[: self.positive])[: self.true_positive]] = True
        shows[generator.permutation(order[self.positive :])[: self.missed]] = True
        return positive, shows

    def scores(self, positive: Flags, shows: Flags, generator: np.random.Generator) -> Floats:
        """Draw the highest score of the vehicle boxes of each image.

        Parameters
        ----------
        positive, shows : ndarray of bool, shape (n,)
            Whether the image is positive, and whether it shows police.
        generator : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        ndarray of float64, shape (n,)
            Scores, rounded to six decimals; NaN without a box.
        """
        drawn = generator.random(len(positive))
        boxed = positive | (
            generator.random(len(positive)) < np.where(shows, _MISSED_WITH_BOX, _TRUE_NEGATIVE_WITH_BOX)
        )
        power = np.where(
            positive,
            np.where(shows, _TRUE_POSITIVE_POWER, _FALSE_POSITIVE_POWER),
            np.where(shows, _MISSED_POWER, _TRUE_NEGATIVE_POWER),
        )
        # A margin of 1% on either side keeps rounded scores on their side of the threshold.
        bottom = np.where(positive, self.threshold + 0.01 * (1 - self.threshold), LOWEST_SCORE)
        top = np.where(positive, 1 - 0.01 * (1 - self.threshold), 0.99 * self.threshold)
        return np.where(boxed, np.round(bottom + (top - bottom) * drawn**power, 6), np.nan)


def fit_detector(
    rate: Floats, *, lowest: float, highest: float, precision: float, recall: float, threshold: float
) -> Detector:
    """Return the detector whose precision and recall on the validation set are as close as whole images allow.

    Parameters
    ----------
    rate : ndarray of float64, shape (n,)
        True rate at the location of each image of the validation set.
    lowest, highest : float
        Range of the rates of the city, which must lie between p_negative and p_positive.
    precision, recall : float
        Requested values, above 0 and at most 1.
    threshold : float
        Threshold of the study.

    Raises
    ------
    SettingsError
        If there are too few labeled images, or if the rates are out of range.
    """
    images, mean = len(rate), float(rate.mean())
    positive = round(images * mean * recall / precision)
    true_positive = round(positive * precision)
    if true_positive == 0 or positive == images:
        raise SettingsError(
            f"{images} validation images with mean rate {mean:.4g}, precision {precision:g}, and recall {recall:g} "
            f"have {positive} positive images, {true_positive} of them true; expected at least one true positive and "
            f"one negative; increase validation_images"
        )
    missed = round(true_positive * (1 - recall) / recall)
    if positive + missed > images:
        raise SettingsError(
            f"recall {recall:g} implies {missed} missed images among {images - positive} negative ones; raise recall"
        )
    detector = Detector(images, positive, true_positive, missed, threshold)
    if lowest <= detector.p_negative:
        raise SettingsError(
            f"the lowest rate {lowest:.4g} is too low; expected more than {detector.p_negative:.4g}, the false "
            f"omission rate that follows from recall {recall:g} and mean rate {mean:.4g}; raise recall, or use --rates "
            f"that differ less"
        )
    if highest >= detector.p_positive:
        raise SettingsError(
            f"the highest rate {highest:.4g} is too high; expected less than the precision {detector.p_positive:.4g}; "
            f"raise precision, or use lower --rates"
        )
    return detector


@dataclass(frozen=True)
class Boxes:
    """Boxes of several images as in YOLO label files, with ascending scores within each image."""

    image: Ints  # (b,) image number
    kind: Ints  # (b,) class number
    shape: Floats  # (b, 4) center x, center y, width, height; shares of the image
    score: Floats  # (b,)

    def texts(self) -> tuple[Ints, list[bytes]]:
        """Return the images with boxes, in ascending order, and the text of their label files."""
        lines = [
            f"{kind} {x:g} {y:g} {width:g} {height:g} {score:g}\n"
            for kind, (x, y, width, height), score in zip(
                self.kind.tolist(), self.shape.tolist(), self.score.tolist(), strict=True
            )
        ]
        images, first, boxes = np.unique(self.image, return_index=True, return_counts=True)
        ends = first + boxes
        return images, ["".join(lines[start:end]).encode() for start, end in zip(first, ends, strict=True)]


def draw_boxes(score: Floats, generator: np.random.Generator) -> Boxes:
    """Draw boxes of images whose highest vehicle score is given; NaN: no vehicle box.

    Some images have a second vehicle with a lower score. Some, with or without a vehicle, have a police officer, whose
    score is independent.
    """
    vehicle = np.flatnonzero(~np.isnan(score))
    second = vehicle[generator.random(len(vehicle)) < _SECOND_VEHICLE]
    officer = np.flatnonzero(generator.random(len(score)) < _OFFICER)
    weaker = LOWEST_SCORE + (score[second] - LOWEST_SCORE) * generator.random(len(second))
    alone = LOWEST_SCORE + (0.95 - LOWEST_SCORE) * generator.random(len(officer))
    image = np.concatenate([vehicle, second, officer])
    kind = np.repeat([VEHICLE, VEHICLE, OFFICER], [len(vehicle), len(second), len(officer)])
    scores = np.round(np.concatenate([score[vehicle], weaker, alone]), 6)
    # Cars are on the road, slightly below the center of the image.
    size = 0.03 + 0.3 * generator.random(len(image)) ** 2
    width, height = size, size * np.where(kind == VEHICLE, 0.8, 2.0)
    room = np.column_stack([1 - width, 0.6 - np.minimum(height, 0.6)])
    corner = generator.random((len(image), 2)) * room + np.array([0.0, 0.35])
    center_x, center_y = corner[:, 0] + width / 2, np.minimum(corner[:, 1] + height / 2, 1 - height / 2)
    order = np.lexsort([scores, image])
    shape = np.column_stack([center_x, center_y, width, height])
    return Boxes(image[order], kind[order], shape[order], scores[order])
