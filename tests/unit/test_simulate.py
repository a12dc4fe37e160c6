"""The simulated study: its inputs look like the real ones, and its truth is what it says."""

import json
import re
from datetime import date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pandas as pd
import pytest
import shapely
from sklearn.metrics import average_precision_score, roc_auc_score

from patrolscope.analysis.estimators.calibration import two_class
from patrolscope.analysis.stages.calibrate import read_labeled
from patrolscope.pipeline.errors import SettingsError, SourceError
from patrolscope.pipeline.geography.layers import build_areas, read_layer
from patrolscope.pipeline.geography.polygon_index import PolygonIndex
from patrolscope.pipeline.geography.readers import read_felonies
from patrolscope.pipeline.simulation import public_data as public
from patrolscope.pipeline.simulation.detector import Detector, draw_boxes, fit_detector
from patrolscope.pipeline.simulation.road_network import M_PER_DEGREE, Streets
from patrolscope.pipeline.simulation.simulate import METADATA_FOLDER, SIMULATE_CITY, SIMULATE_DAYS, simulate
from patrolscope.pipeline.simulation.truth import MEAN_LEVEL, levels_of_areas
from patrolscope.pipeline.study.store import open_study
from tests.small_city import areas, content, day_records, labels, rows, simulated, small_study

NEW_YORK = ZoneInfo("America/New_York")
THRESHOLD = 0.770508
# The published validation set (paper_results, "How the numbers are made").
PUBLISHED = Detector(images=20_000, positive=264, true_positive=205, missed=42, threshold=THRESHOLD)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("city"))


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    return simulated(tmp_path_factory.mktemp("large"), images=150_000, days=2, seed=9)


def truth_of(study):
    return json.loads(study.read_bytes("truth/truth.json"))


def refuse_to_start():
    pytest.fail("a cluster was started")


# Metadata.


def test_there_are_exactly_as_many_images_as_asked_for_and_a_few_rows_twice(large):
    frame = rows(large)
    assert truth_of(large)["repeated_rows"] == 8
    assert len(frame) == 150_008
    assert frame.duplicated(["image_ref", "timestamp", "lat", "lng", "split", "file"]).sum() == 8
    assert frame["image_ref"].nunique() == 150_000
    assert frame.drop_duplicates("image_ref").duplicated(["lat", "lng", "timestamp"]).sum() == 0


@pytest.mark.parametrize("images", [1, 2, 61, 399])
def test_very_small_studies_have_their_images_too(tmp_path, images):
    frame = rows(simulated(tmp_path, images=images, days=5))
    assert len(frame) == images + 1
    assert frame["image_ref"].nunique() == images


def test_every_image_stands_in_the_file_of_its_local_day(study):
    frame = rows(study)
    midnights = [datetime(2020, 10, 31, tzinfo=NEW_YORK), datetime(2020, 11, 1, tzinfo=NEW_YORK)]
    midnights.append(datetime(2020, 11, 2, tzinfo=NEW_YORK))
    names = [f"{round(midnight.timestamp() * 1000)}.csv" for midnight in midnights]
    assert sorted(frame["file"].unique()) == names
    for name, midnight in zip(names, midnights, strict=True):
        assert set(frame.loc[frame["file"] == name, "local"].dt.date) == {midnight.date()}


def test_rides_fill_all_25_hours_of_the_day_on_which_the_clocks_go_back(tmp_path):
    frame = rows(simulated(tmp_path, images=100_000, days=1, first_day="2020-11-01"))
    hours_since_midnight = (frame["timestamp"] - int(frame["file"].iloc[0].removesuffix(".csv"))) // 3_600_000
    assert set(hours_since_midnight) == set(range(25))


def test_rides_are_more_by_day_than_at_night(large):
    by_hour = rows(large)["local"].dt.hour.value_counts().sort_index()
    assert by_hour.loc[9:20].mean() > 3 * by_hour.loc[1:4].mean()


def test_metadata_files_have_the_published_form(study):
    for path in Path(study.path(METADATA_FOLDER)).iterdir():
        header, *lines = path.read_text().splitlines()
        assert header == "image_ref,timestamp,lat,lng,split"
        form = re.compile(r"ride/[0-9a-f]{32}/[^/,]+\.jpg,\d{13},40(\.\d{1,6})?,-7[34](\.\d{1,6})?,[01]")
        assert [line for line in lines if not form.fullmatch(line)] == []


def test_a_ride_is_a_run_of_images_in_the_order_of_time_a_few_seconds_apart(study):
    frame = rows(study).drop_duplicates("image_ref")
    frame["ride"] = frame["image_ref"].str.slice(5, 37)
    assert (frame["ride"] != frame["ride"].shift()).sum() == frame["ride"].nunique()
    assert frame.groupby("ride")["file"].nunique().max() == 1
    apart_s = frame.groupby("ride")["timestamp"].diff().dropna() / 1000
    assert apart_s.between(2.3, 8.5).all()
    assert 150 < frame["ride"].value_counts().mean() < 250


def test_images_of_a_ride_follow_each_other_at_street_speed(study):
    frame = rows(study).drop_duplicates("image_ref")
    ride = frame["image_ref"].str.slice(5, 37)
    north_m = frame.groupby(ride)["lat"].diff() * M_PER_DEGREE
    east_m = frame.groupby(ride)["lng"].diff() * M_PER_DEGREE * np.cos(np.radians(frame["lat"]))
    speed = np.hypot(north_m, east_m) / (frame.groupby(ride)["timestamp"].diff() / 1000)
    assert 3 < speed.median() < 8  # meters a second
    assert speed.max() < 50


def test_images_lie_within_meters_of_a_boundary(study):
    frame = rows(study)
    edges = shapely.union_all(areas().boundary.to_numpy())
    scale = np.array([np.cos(np.radians(40.715)), 1.0]) * M_PER_DEGREE
    points = shapely.points(frame[["lng", "lat"]].to_numpy() * scale)
    distance_m = shapely.distance(points, shapely.transform(edges, lambda degrees: degrees * scale))
    assert distance_m.max() < 12
    assert distance_m.mean() > 1


def test_rides_start_more_often_in_the_center():
    streets = Streets.build(areas().geometry.to_numpy())
    places = streets.positions(*streets.draw_places(50_000, np.random.default_rng(2)))
    away = np.hypot((places[:, 0] + 73.985) * 0.76, places[:, 1] - 40.715)
    inner, outer = (away < 0.006).sum(), ((away > 0.008) & (away < 0.010)).sum()  # the same surface
    assert inner > 1.5 * outer


def test_a_tenth_of_the_images_developed_the_model(large):
    share = (rows(large)["split"] == 0).mean()
    assert share == pytest.approx(0.1, abs=4 * np.sqrt(0.09 / 150_000))


# Labels.


def test_label_files_hold_boxes_in_the_form_and_order_that_the_detector_writes(study):
    boxes = labels(study)
    assert boxes.groupby("stem")["score"].apply(lambda scores: scores.is_monotonic_increasing).all()
    assert boxes["kind"].isin([0, 1]).all()
    assert boxes["kind"].value_counts()[1] > boxes["kind"].value_counts()[0] > 0
    assert ((boxes["x"] - boxes["width"] / 2).min() >= 0) & ((boxes["x"] + boxes["width"] / 2).max() <= 1)
    assert ((boxes["y"] - boxes["height"] / 2).min() >= 0) & ((boxes["y"] + boxes["height"] / 2).max() <= 1)
    for path in Path(study.path("source/labels")).rglob("*.txt"):
        for line in path.read_text().splitlines():
            assert line == "{} {:g} {:g} {:g} {:g} {:g}".format(line.split()[0], *map(float, line.split()[1:]))


def test_every_label_file_belongs_to_an_image_of_its_day(study):
    boxes, frame = labels(study), rows(study)
    day = frame.drop_duplicates("stem").set_index("stem")["local"].dt.strftime("%Y-%m-%d")
    assert frame["stem"].nunique() == frame["image_ref"].nunique()
    assert (day.loc[boxes["stem"]].to_numpy() == boxes["day"]).all()


def test_a_vehicle_box_stands_above_the_threshold_in_just_the_positive_images(large):
    boxes = labels(large)
    best = boxes[boxes["kind"] == 1].groupby("stem")["score"].max()
    facts = [record.facts for record in day_records(large).values()]
    assert (best > THRESHOLD).sum() == sum(fact["positive"] for fact in facts) > 1000
    assert (best[best > THRESHOLD] > THRESHOLD + 0.001).all()
    assert boxes["stem"].nunique() == sum(fact["label_files"] for fact in facts)


def test_positives_come_at_the_rate_that_the_level_of_their_neighborhood_asks_for(large):
    truth, frame = truth_of(large), rows(large).drop_duplicates("image_ref")
    boxes = labels(large)
    positive = set(boxes.loc[(boxes["kind"] == 1) & (boxes["score"] > THRESHOLD), "stem"])
    city = areas()
    area = PolygonIndex.build(city["geoid"].to_numpy(), city.geometry.to_numpy()).locate(frame["lng"], frame["lat"])
    level = pd.read_csv(large.path("truth/neighborhoods.csv")).set_index("neighborhood")["level"]
    chance = (level - truth["p_negative"]) / (truth["p_positive"] - truth["p_negative"])
    row = pd.Series(area // 5, index=frame.index)[area >= 0].map("Row {}".format)
    found = frame["stem"].isin(positive).groupby(row).agg(["sum", "size"])
    expected = found["size"] * chance
    z = (found["sum"] - expected) / np.sqrt(expected * (1 - chance))
    assert len(z) == 5
    assert z.abs().max() < 3.5
    assert level.max() > 5 * level.min()


def test_images_show_police_as_often_as_the_levels_say(large):
    shows = sum(record.facts["shows_police"] for record in day_records(large).values())
    expected = 150_000 * truth_of(large)["mean_level"]
    # The mean level is that of the validation set's places, itself a sample: a tenth is four times its spread.
    assert shows == pytest.approx(expected, rel=0.1)


# Truth and labeled sets.


def test_calibrating_on_the_validation_set_gives_the_true_probabilities_exactly(study):
    truth = truth_of(study)
    frame = read_labeled(study.path("source/validation.csv"), where="sources.validation")
    found = two_class(frame["ground_truth"], frame["score"], THRESHOLD)
    assert len(frame) == 2_000
    assert (found.ppv, found.false_omission_rate) == (truth["p_positive"], truth["p_negative"])


def test_the_published_validation_set_follows_from_precision_recall_and_mean_level():
    level = np.full(20_000, 247 / 20_000)
    assert (
        fit_detector(level, lowest=0.0022, highest=0.042, precision=0.777, recall=0.83, threshold=THRESHOLD)
        == PUBLISHED
    )


def test_the_levels_of_areas_are_those_of_their_neighborhoods(study):
    by_area = pd.read_csv(study.path("truth/areas.csv"), dtype={"area": "str"})
    level = pd.read_csv(study.path("truth/neighborhoods.csv")).set_index("neighborhood")["level"]
    assert len(by_area) == 25
    assert (by_area["level"] == by_area["neighborhood"].map(level)).all()


def test_given_levels_hold_and_an_absent_neighborhood_gets_their_mean(tmp_path):
    given = {"Row 0": 0.01, "Row 1": 0.004, "Row 4": 0.016, "Row 9": 0.01}
    study = simulated(tmp_path, levels=given, images=100)
    level = pd.read_csv(study.path("truth/neighborhoods.csv")).set_index("neighborhood")["level"]
    assert level.to_dict() == {"Row 0": 0.01, "Row 1": 0.004, "Row 2": 0.01, "Row 3": 0.01, "Row 4": 0.016}
    assert truth_of(study)["level_elsewhere"] == 0.01


def test_simulated_levels_have_the_published_mean_over_images_whatever_the_seed():
    city = pd.DataFrame({"neighborhood": [f"Quarter {number // 4}" for number in range(400)]})
    points = np.column_stack([np.arange(400) % 20, np.arange(400) // 20]) * 0.01 + np.array([-74.0, 40.7])
    images = np.repeat(np.arange(400), np.arange(400) // 40 + 1).astype(np.int32)
    for seed in range(5):
        level, elsewhere = levels_of_areas(city, points, images, None, seed)
        assert level[images].mean() == pytest.approx(MEAN_LEVEL)
        assert elsewhere == MEAN_LEVEL
        assert level.max() / level.min() == pytest.approx(19, rel=0.1)


def test_levels_are_alike_in_neighboring_places():
    across, up = np.meshgrid(np.linspace(-74.0, -73.9, 40), np.linspace(40.7, 40.8, 40))
    surface = public.smooth_surface(np.column_stack([across.ravel(), up.ravel()]), np.random.default_rng(1))
    surface = surface.reshape(40, 40)
    assert np.abs(np.diff(surface, axis=0)).mean() < 0.5 * surface.std()
    assert 0.5 < surface.std() < 1.5


def test_the_detector_is_about_as_good_as_the_published_one():
    generator = np.random.default_rng(3)
    positive, shows = PUBLISHED.detect(np.full(400_000, 247 / 20_000), generator)
    score = np.nan_to_num(PUBLISHED.scores(positive, shows, generator))
    assert (score > THRESHOLD).tolist() == positive.tolist()
    assert (shows & positive).sum() / shows.sum() == pytest.approx(0.83, abs=0.02)
    assert shows[positive].mean() == pytest.approx(0.777, abs=0.02)
    assert roc_auc_score(shows, score) == pytest.approx(0.98, abs=0.01)
    assert average_precision_score(shows, score) == pytest.approx(0.82, abs=0.02)


def test_text_keeps_a_score_on_its_side_of_the_threshold():
    generator = np.random.default_rng(4)
    positive, shows = PUBLISHED.detect(np.full(400_000, 0.05), generator)
    boxes = draw_boxes(PUBLISHED.scores(positive, shows, generator), generator)
    images, texts = boxes.texts()
    best = {
        image: max((float(line.split()[5]) for line in text.decode().splitlines() if line[0] == "1"), default=0)
        for image, text in zip(images.tolist(), texts, strict=True)
    }
    assert {image for image, score in best.items() if score > THRESHOLD} == set(np.flatnonzero(positive).tolist())


# Public data.


def test_the_simulated_public_data_are_read_like_the_official_files(study):
    city = build_areas(study)
    groups = city[["persons_white", "persons_black", "persons_hispanic", "persons_asian"]]
    assert (city["persons"] > 0).all()
    assert (groups.sum(axis=1) <= city["persons"]).all()
    assert groups.sum().min() > 0.03 * city["persons"].sum()
    assert city["income_usd"].max() == 250_000
    assert city["income_usd"].min() == 2_500
    stations = read_layer(study, study.settings.layers.stations)
    assert len(stations) == 1


@pytest.mark.shared
def test_the_population_table_has_the_columns_of_the_authors_file(study, shared_data):
    header = (shared_data / "census" / "nyc_cbgs_ethnicity_table.csv").read_text().splitlines()[0]
    assert Path(study.path("source/population.csv")).read_text().splitlines()[0] == header


@pytest.mark.shared
def test_the_income_table_has_the_headings_of_the_official_file(study, shared_data):
    official = (shared_data / "census" / "ACSDT5Y2020.B19013-Data.csv").read_text().splitlines()[:2]
    assert Path(study.path("source/income.csv")).read_text().splitlines()[:2] == official


@pytest.mark.shared
def test_the_complaints_have_the_header_of_the_official_file(study, shared_data):
    official = (shared_data / "nypd" / "NYPD_Complaint_Data_Historic_sample_35col.csv").read_bytes().splitlines()[0]
    assert Path(study.path("source/complaints.csv")).read_bytes().splitlines()[0] == official


def test_felonies_surround_every_image_and_some_rows_have_the_official_faults(study):
    felonies, ledger = read_felonies(
        Path(study.path("source/complaints.csv")), category="FELONY", time_zone="America/New_York"
    )
    local = felonies["started_at_utc"].dt.tz_convert("America/New_York")
    assert set(local.dt.date) == {date(2020, 10, 30) + timedelta(days=ahead) for ahead in range(5)}
    assert ledger.rows_in == 5 * 1130
    assert ledger.dropped["no position"] > 0
    assert felonies["felony_id"].is_unique
    assert 0.25 < len(felonies) / ledger.rows_in < 0.40


def test_some_complaints_have_an_hour_of_24_and_a_year_long_gone(study):
    complaints = pd.read_csv(
        study.path("source/complaints.csv"), dtype="str", keep_default_na=False, encoding="utf-8-sig"
    )
    assert (complaints["CMPLNT_FR_TM"] == "24:00:00").any()
    assert complaints["CMPLNT_FR_DT"].str.endswith("/1020").any()
    assert (complaints["Lat_Lon"] == "(0.0, 0.0)").any()


def test_nobody_lives_in_the_largest_area():
    shapes = areas().rename(columns={"geoid": "area"})
    shapes.loc[3, "geometry"] = shapely.box(-73.9, 40.7, -73.8, 40.8)
    persons = public.population(shapes, seed=3)["Estimate_Total"]
    assert np.flatnonzero(persons == 0).tolist() == [3]
    income = public.income(shapes, persons.to_numpy(), seed=3)
    assert income["B19013_001E"].iloc[1 + 3] == "-"


def test_places_have_mixed_people():
    shapes = areas().rename(columns={"geoid": "area"})
    people = public.population(shapes, seed=3)
    share = people["Estimate_Total_Hispanic_or_Latino"] / people["Estimate_Total"].clip(lower=1)
    assert share.std() > 0.05
    totals = people[["Estimate_Total_Not_Hispanic_or_Latino", "Estimate_Total_Hispanic_or_Latino"]].sum(axis=1)
    assert (totals == people["Estimate_Total"]).all()


# Again, and errors.


def test_a_day_that_was_stopped_half_way_is_made_again_whole(study, tmp_path):
    before = content(study)
    day = SIMULATE_DAYS.plan(study)[1]
    labels_of_day = Path(study.path("source/labels", day.name))
    first, *others = sorted(labels_of_day.iterdir())
    first.write_bytes(b"1 0.")
    others[0].unlink()
    (labels_of_day / "left.txt").write_bytes(b"")
    SIMULATE_DAYS.finish(study, day)
    assert content(study) == before


def test_the_days_may_be_made_in_any_order(study, tmp_path):
    other = small_study(tmp_path)
    SIMULATE_CITY.finish(other, SIMULATE_CITY.plan(other)[0])
    for day in reversed(SIMULATE_DAYS.plan(other)):
        SIMULATE_DAYS.finish(other, day)
    assert content(other) == content(study)


def test_another_seed_gives_another_study(study, tmp_path):
    other = content(simulated(tmp_path, seed=8))
    same = [name for name, text in content(study).items() if other.get(name) == text]
    assert same == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"images": 0}, "images 0"),
        ({"days": 0}, "days 0"),
        ({"days": -3}, "days -3"),
        ({"seed": -1}, "seed -1"),
        ({"precision": 1.2}, "precision 1.2"),
        ({"recall": 0.0}, "recall 0.0"),
        ({"validation_images": 0}, "validation_images 0"),
        ({"city": "london"}, "city 'london'"),
    ],
)
def test_an_impossible_argument_is_named(tmp_path, wrong, said):
    with pytest.raises(SettingsError, match=re.escape(said)):
        simulate(str(tmp_path / "out"), **{"images": 10, "client": refuse_to_start, **wrong})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name,level\nHarlem,0.01\n", "has no column nta"),
        ("nta,weighted_mean\nHarlem,1.5\n", "the level of 'Harlem' is 1.5"),
        ("nta,weighted_mean\nHarlem,0\n", "the level of 'Harlem' is 0"),
        ("nta,weighted_mean\nHarlem,much\n", "levels.csv"),
    ],
)
def test_levels_that_can_not_be_read_are_refused(tmp_path, text, said):
    (tmp_path / "levels.csv").write_text(text)
    with pytest.raises(SourceError, match=re.escape(said)):
        simulate(str(tmp_path / "out"), images=10, client=refuse_to_start, levels=tmp_path / "levels.csv")


def test_a_levels_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(SourceError, match=re.escape("none.csv is no file")):
        simulate(str(tmp_path / "out"), images=10, client=refuse_to_start, levels=tmp_path / "none.csv")


def test_levels_of_another_city_are_refused(tmp_path):
    with pytest.raises(SettingsError, match="is among the 1 given levels, such as that of 'Montmartre'"):
        simulated(tmp_path, levels={"Montmartre": 0.01})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"levels": {"Row 0": 0.001, "Row 1": 0.02}}, "the lowest level 0.001 is not above"),
        ({"levels": {"Row 0": 0.9, "Row 1": 0.5}}, "the highest level 0.9 is not below"),
        ({"recall": 0.3}, "raise recall"),
        ({"validation_images": 20}, "ask for more validation_images"),
    ],
)
def test_a_detector_that_can_not_be_is_refused(tmp_path, changes, said):
    with pytest.raises(SettingsError, match=said):
        simulated(tmp_path, **changes)


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(SettingsError, match="is not empty and holds no simulated study"):
        simulate(str(tmp_path), images=10, client=refuse_to_start)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(SettingsError, match="is a file"):
        simulate(str(tmp_path / "out"), images=10, client=refuse_to_start)


def test_an_object_store_is_refused():
    with pytest.raises(SettingsError, match="needs a local folder"):
        simulate("memory://study", images=10, client=refuse_to_start)


def test_other_arguments_for_the_same_folder_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="no cluster"):
        simulate(str(tmp_path / "out"), images=10, seed=1, client=no_cluster)
    with pytest.raises(SettingsError, match=re.escape("other images, seed (images 10, now asked 20)")):
        simulate(str(tmp_path / "out"), images=20, seed=2, client=refuse_to_start)


def no_cluster():
    raise RuntimeError("no cluster")


def test_a_run_that_was_stopped_before_its_first_result_goes_on(tmp_path):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no cluster"):
            simulate(str(tmp_path / "out"), images=10, client=no_cluster)
    assert open_study(tmp_path / "out").settings.simulated.startswith("Images, detections")


def test_settings_that_the_user_changed_stay(tmp_path):
    path = tmp_path / "out" / "study.yaml"
    for _ in range(2):
        with pytest.raises(RuntimeError, match="no cluster"):
            simulate(str(tmp_path / "out"), images=10, client=no_cluster)
        path.write_text(path.read_text().replace("replicates: 100", "replicates: 7"))
    assert open_study(tmp_path / "out").settings.estimate.replicates == 7


def test_days_beyond_the_usual_period_belong_to_the_study(tmp_path):
    with pytest.raises(RuntimeError, match="no cluster"):
        simulate(str(tmp_path / "out"), images=1000, days=100, client=no_cluster)
    assert open_study(tmp_path / "out").settings.period.end == date(2021, 1, 12)
