"""Settings of a study in the form that the sensitivity analysis takes them."""

from __future__ import annotations

from patrolscope.analysis.estimators.variants import VariantOptions
from patrolscope.pipeline.study.config import Settings


def variant_options(settings: Settings) -> VariantOptions:
    """Collect the settings of the base and its variants."""
    estimate, sensitivity = settings.estimate, settings.sensitivity
    return VariantOptions(
        first_day=estimate.first_day,
        split=estimate.split,
        threshold=estimate.threshold,
        zone_share=estimate.zone_share,
        calibrations=sensitivity.calibrations,
        geographies=sensitivity.geographies,
        minimum_images=sensitivity.minimum_images,
        dates=sensitivity.dates,
        times=sensitivity.times,
        even_hours=sensitivity.even_hours,
        people_share=sensitivity.people_share,
    )
