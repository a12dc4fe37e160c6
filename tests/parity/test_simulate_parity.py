"""A simulated study does not depend on how its days are distributed over workers, to the byte."""

import pytest

from patrolscope.pipeline.engine.run import Progress, run_stages
from patrolscope.pipeline.simulation.simulate import simulate
from patrolscope.pipeline.simulation.stages import SIMULATE_CITY, SIMULATE_DAYS
from tests import small_city
from tests.small_city import content, small_study

STAGES = [SIMULATE_CITY, SIMULATE_DAYS]


class Counting(Progress):
    """Listener that records finished shards."""

    def __init__(self):
        self.finished = []

    def advance(self, stage, shard, record):
        self.finished.append((stage.name, shard.name))


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return small_city.simulated(tmp_path_factory.mktemp("alone"))


def fail_to_start():
    pytest.fail("a cluster was started for a complete study")


def test_two_workers_write_the_same_files_as_one_process(client, alone, tmp_path):
    study = small_study(tmp_path)
    run_stages(study, STAGES, lambda: client)
    assert content(study) == content(alone)
    assert study.records("simulate").keys() == {"2020-10-31", "2020-11-01", "2020-11-02"}


def test_only_missing_days_are_rebuilt(client, alone, tmp_path):
    study, counting = small_study(tmp_path), Counting()
    run_stages(study, STAGES, lambda: client)
    study.fs.rm_file(study.path("source/metadata/1604203200000.csv"))
    run_stages(study, STAGES, lambda: client, counting)
    assert counting.finished == [("simulate", "2020-11-01")]
    assert content(study) == content(alone)


def test_a_complete_study_is_not_rebuilt(simulated):
    before, counting = content(simulated), Counting()
    simulate(simulated.root, images=60_000, days=3, client=fail_to_start, progress=counting)
    assert counting.finished == []
    assert content(simulated) == before
    assert sum(text.count(b"\n") - 1 for name, text in before.items() if "metadata" in name) == 60_000 + 3
