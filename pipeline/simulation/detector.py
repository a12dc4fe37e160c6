"""A detector of given precision and recall, calibrated everywhere, as the method assumes.

An image is classified positive with a chance q that follows from the true level of its place, and then shows police
with chance p_positive or p_negative, wherever it was taken. So q = (level - p_negative) / (p_positive - p_negative).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from patrolscope.pipeline.errors import SettingsError

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

OFFICER, VEHICLE = 0, 1  # class numbers of the paper's model

# The shapes below give an AUC of about 0.98 and an average precision of about 0.82, the published ones
# (tests/unit/test_simulate.py). Powers of a uniform: below 1 they lean to the top of the range, above 1 to its foot.
_TRUE_POSITIVE_POWER = 0.5
_FALSE_POSITIVE_POWER = 1.6
_MISSED_POWER = 1.0
_TRUE_NEGATIVE_POWER = 4.0
_MISSED_WITH_BOX = 0.8  # share of images that show police, were not found, and still have a weak box
_TRUE_NEGATIVE_WITH_BOX = 0.03
_SECOND_VEHICLE = 0.15  # share of images with a vehicle box that have another, weaker one
_OFFICER = 0.003  # share of all images with a police officer
LOWEST_SCORE = 0.01  # the detector's own cut in the reference study


@dataclass(frozen=True)
class Detector:
    """Chances of showing police by class, as whole counts of the validation set say, and the score between them."""

    images: int  # in the validation set
    positive: int
    true_positive: int
    missed: int  # negative, but showing police
    threshold: float

    @property
    def p_positive(self) -> float:
        """Pr(shows police | classified positive)."""
        return self.true_positive / self.positive

    @property
    def p_negative(self) -> float:
        """Pr(shows police | classified negative)."""
        return self.missed / (self.images - self.positive)

    def positive_chance(self, level: Floats) -> Floats:
        """Pr(classified positive) where an image shows police with chance `level`."""
        return (level - self.p_negative) / (self.p_positive - self.p_negative)

    def detect(self, level: Floats, generator: np.random.Generator) -> tuple[Flags, Flags]:
        """Which images are classified positive, and which show police; (n,) each."""
        positive = generator.random(len(level)) < self.positive_chance(level)
        shows = generator.random(len(level)) < np.where(positive, self.p_positive, self.p_negative)
        return positive, shows

    def detect_exactly(self, level: Floats, generator: np.random.Generator) -> tuple[Flags, Flags]:
        """The same for the validation set, with exactly the expected counts, so that calibrating on it is exact."""
        positive, shows = np.zeros((2, self.images), dtype=np.bool_)
        # The smallest of exponential draws, each divided by its weight: a sample without replacement by weight.
        order = np.argsort(generator.standard_exponential(self.images) / self.positive_chance(level), kind="stable")
        positive[order[: self.positive]] = True
        shows[generator.permutation(order[: self.positive])[: self.true_positive]] = True
        shows[generator.permutation(order[self.positive :])[: self.missed]] = True
        return positive, shows

    def scores(self, positive: Flags, shows: Flags, generator: np.random.Generator) -> Floats:
        """(n,) confidence of the strongest vehicle box, as text with six digits would hold it; missing: no box."""
        drawn = generator.random(len(positive))
        boxed = positive | (
            generator.random(len(positive)) < np.where(shows, _MISSED_WITH_BOX, _TRUE_NEGATIVE_WITH_BOX)
        )
        power = np.where(
            positive,
            np.where(shows, _TRUE_POSITIVE_POWER, _FALSE_POSITIVE_POWER),
            np.where(shows, _MISSED_POWER, _TRUE_NEGATIVE_POWER),
        )
        # A margin of one part in a hundred of either side keeps rounded text on its side of the threshold.
        foot = np.where(positive, self.threshold + 0.01 * (1 - self.threshold), LOWEST_SCORE)
        top = np.where(positive, 1 - 0.01 * (1 - self.threshold), 0.99 * self.threshold)
        return np.where(boxed, np.round(foot + (top - foot) * drawn**power, 6), np.nan)


def fit_detector(
    level: Floats, *, lowest: float, highest: float, precision: float, recall: float, threshold: float
) -> Detector:
    """The detector whose precision and recall on a validation set are as near as whole images allow.

    Parameters
    ----------
    level : (n,) true level at the place of each image of the validation set
    lowest, highest : of all levels in the city, which have to lie between p_negative and p_positive

    Raises
    ------
    SettingsError : no such detector: too few labeled images, or levels out of its reach
    """
    images, mean = len(level), float(level.mean())
    positive = round(images * mean * recall / precision)
    true_positive = round(positive * precision)
    if true_positive == 0 or positive == images:
        raise SettingsError(
            f"validation_images {images}, mean level {mean:.4g}, precision {precision:g} and recall {recall:g} give "
            f"{positive} positive images, {true_positive} of them true; a calibration needs at least one true "
            f"positive and one negative: ask for more validation_images"
        )
    missed = round(true_positive * (1 - recall) / recall)
    if positive + missed > images:
        raise SettingsError(
            f"recall {recall:g} leaves {missed} missed images among {images - positive} negative ones: raise recall"
        )
    detector = Detector(images, positive, true_positive, missed, threshold)
    if lowest <= detector.p_negative:
        raise SettingsError(
            f"the lowest level {lowest:.4g} is not above {detector.p_negative:.4g}, the share of police images among "
            f"those without a detection, which follows from recall {recall:g} and the mean level {mean:.4g}: raise "
            f"recall, or give levels that lie closer together"
        )
    if highest >= detector.p_positive:
        raise SettingsError(
            f"the highest level {highest:.4g} is not below the precision {detector.p_positive:.4g}: raise precision, "
            f"or give lower levels"
        )
    return detector


@dataclass(frozen=True)
class Boxes:
    """Boxes of some images, in ascending confidence within an image: what YOLO label files hold."""

    image: Ints  # (b,) which image
    kind: Ints  # (b,) class number
    shape: Floats  # (b, 4) center x, center y, width, height, as shares of the image
    score: Floats  # (b,)

    def texts(self) -> tuple[Ints, list[bytes]]:
        """Images with a box, rising, and the text of each one's label file."""
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
    """Boxes of images whose strongest vehicle box has the given score; missing: no vehicle box.

    A few images have a second, weaker vehicle, and a few, also among those without a vehicle, a police officer, whose
    confidence says nothing of the vehicle's.
    """
    vehicle = np.flatnonzero(~np.isnan(score))
    second = vehicle[generator.random(len(vehicle)) < _SECOND_VEHICLE]
    officer = np.flatnonzero(generator.random(len(score)) < _OFFICER)
    weaker = LOWEST_SCORE + (score[second] - LOWEST_SCORE) * generator.random(len(second))
    alone = LOWEST_SCORE + (0.95 - LOWEST_SCORE) * generator.random(len(officer))
    image = np.concatenate([vehicle, second, officer])
    kind = np.repeat([VEHICLE, VEHICLE, OFFICER], [len(vehicle), len(second), len(officer)])
    scores = np.round(np.concatenate([score[vehicle], weaker, alone]), 6)
    # Cars stand on the road, a little below the middle of the picture; width and height by a share of its size.
    size = 0.03 + 0.3 * generator.random(len(image)) ** 2
    width, height = size, size * np.where(kind == VEHICLE, 0.8, 2.0)
    room = np.column_stack([1 - width, 0.6 - np.minimum(height, 0.6)])
    corner = generator.random((len(image), 2)) * room + np.array([0.0, 0.35])
    center_x, center_y = corner[:, 0] + width / 2, np.minimum(corner[:, 1] + height / 2, 1 - height / 2)
    order = np.lexsort([scores, image])
    shape = np.column_stack([center_x, center_y, width, height])
    return Boxes(image[order], kind[order], shape[order], scores[order])
