"""A run called from Python: what the command line does, without its flags."""

import pathlib

import pytest

from tdsm_jax import config as configuration
from tdsm_jax import job
from tdsm_jax.errors import UserError
from tdsm_jax.labels import corruption

DIGITS = str(pathlib.Path(__file__).parents[1] / "configs" / "digits.py")


def smoke(arguments=""):
    return configuration.load(f"{DIGITS}:smoke,methods=dsm{arguments}")


def test_a_plan_writes_nothing_and_names_every_unit(tmp_path):
    planned = job.prepare(smoke(), tmp_path / "run")
    assert [p.unit.name for p in planned.todo] == [p.unit.name for p in planned.planned]
    lines = planned.description.splitlines()
    assert len(lines) == len(planned.planned) and "report.html" in lines[-1]
    assert not (tmp_path / "run").exists()


def test_stages_are_done_once_and_their_artifacts_read_from_the_run(tmp_path):
    run = job.run(smoke(), tmp_path / "run", stages=["labels"])
    assert corruption.realised_rate(run.train_set.labels, run.y_tilde) == pytest.approx(0.4, abs=0.05)
    written = (tmp_path / "run" / "labels.json").stat().st_mtime_ns
    again = job.run(smoke(), tmp_path / "run", stages=["labels"])
    assert (again.y_tilde == run.y_tilde).all()
    assert (tmp_path / "run" / "labels.json").stat().st_mtime_ns == written
    assert "labels" not in [p.unit.name for p in job.prepare(smoke(), tmp_path / "run").todo]


def test_labels_of_another_config_are_overwritten_when_asked_for_only(tmp_path):
    job.run(smoke(), tmp_path, stages=["labels"])
    with pytest.raises(UserError, match=r"labels of another config \(label_noise.rate: 0.4 -> 0.2"):
        job.run(smoke(",rate=0.2"), tmp_path, stages=["labels"])
    run = job.run(smoke(",rate=0.2"), tmp_path, stages=["labels"], overwrite=True)
    assert corruption.realised_rate(run.train_set.labels, run.y_tilde) == pytest.approx(0.2, abs=0.05)


def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path):
    config = smoke()
    config.score.learning_rate = -1.0
    with pytest.raises(UserError, match="score.learning_rate"):
        job.run(config, tmp_path / "run")
    config = smoke()
    config.score.batch_size = 0
    with pytest.raises(UserError, match="score.batch_size"):
        job.run(config, tmp_path / "run")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; give a folder"):
        job.run(smoke(), tmp_path / "file")
    with pytest.raises(UserError, match="needs labels, which is not there"):
        job.run(smoke(), tmp_path / "run", stages=["classifier"])
    assert not (tmp_path / "run").exists()


def test_a_loaded_config_takes_values_but_no_new_keys():
    config = smoke()
    config.score.steps = 3
    with pytest.raises((KeyError, AttributeError), match="stepps"):
        config.score.stepps = 3
