"""Units in order: what is left behind is removed, and a page stands only while everything before it is done."""

import pathlib

import pytest

from tdsm_jax import files, hosts, pipeline
from tdsm_jax.errors import Stopped, UserError
from tdsm_jax.pipeline import Unit


class Config(dict):
    """As much of a config as units that read nothing need."""


def planned(units, workdir):
    return pipeline.plan(units, Config(), workdir)


def writing(workdir: pathlib.Path, name: str, **options) -> Unit:
    """A unit that writes one file of its name."""
    return Unit(name, (), (), (name,), lambda: files.write_text(workdir / name, name), **options)


def run(units, workdir):
    todo = pipeline.select(planned(units, workdir), ())
    pipeline.execute(todo, workdir)
    return [p.unit.name for p in todo]


def test_the_page_of_an_earlier_state_goes_before_anything_is_done(tmp_path):
    def stop():
        raise Stopped

    page = writing(tmp_path, "report")
    assert run([page], tmp_path) == ["report"] and (tmp_path / "report").exists()
    more = Unit("labels", (), (), ("labels",), stop)
    page = Unit("report", (), ("labels",), ("report",), page.run)
    with pytest.raises(Stopped):
        run([more, page], tmp_path)
    assert not (tmp_path / "report").exists()


def test_what_a_unit_goes_on_from_ends_with_it(tmp_path):
    unit = writing(tmp_path, "sample", scratch=("parts",))
    files.write_text(tmp_path / "parts" / "0", "")
    run([unit], tmp_path)
    assert not (tmp_path / "parts").exists()


def test_what_a_kill_left_of_a_finished_unit_is_removed(tmp_path):
    units = [writing(tmp_path, "sample", scratch=("parts",)), writing(tmp_path, "measure", scratch=("others",))]
    run(units[:1], tmp_path)
    for left in ("parts", "others"):
        files.write_text(tmp_path / left / "0", "")
    (tmp_path / ".sample.x.partial").touch()
    pipeline.tidy(planned(units, tmp_path), tmp_path)
    assert not (tmp_path / "parts").exists() and not (tmp_path / ".sample.x.partial").exists()
    assert (tmp_path / "others").exists()  # of a unit that goes on


def write_units(workdir, **units):
    """Writes manifests as finished units leave them; a value "unit x" of None stands for the hash of x, written before.

    `units`: name -> values, with "finished" where they are not.
    """
    for name, values in units.items():
        values = dict(values)
        finished = values.pop("finished", True)
        for key in (key for key, value in values.items() if value is None):
            values[key] = pipeline.read_manifest(workdir, key.removeprefix("unit "))["hash"]
        manifest = {"unit": name, "values": values, "hash": files.digest(values), "finished": finished}
        files.write_json(pipeline.manifest_path(workdir, name), manifest)


def test_a_config_is_read_from_what_a_unit_was_made_of_alone(tmp_path):
    write_units(
        tmp_path,
        labels={"seed": 0, "file a": "x"},
        zebra={"seed": 7},  # of a method that was dropped
        score={"seed": 5, "finished": False},
        judge={"seed": 0, "data.name": "digits"},
        report={"task": "generation", "unit labels": None, "unit judge": None},
    )
    manifests = pipeline.vouched(tmp_path, "report")
    assert set(manifests) == {"report", "labels", "judge"}
    assert pipeline.config_read(manifests) == {"data.name": "digits", "seed": 0, "task": "generation"}
    assert pipeline.vouched(tmp_path, "score") == {} == pipeline.vouched(tmp_path, "nothing")
    with pytest.raises(UserError, match="zebra .*seed: .* make them again by one command"):
        pipeline.config_read(pipeline.vouched(tmp_path, "report", "zebra"))
    write_units(tmp_path, labels={"seed": 5})
    assert pipeline.vouched(tmp_path, "report") == {}


def test_one_host_writes(tmp_path, monkeypatch):
    units = [writing(tmp_path, "sample", scratch=("parts",))]
    run(units, tmp_path)
    files.write_text(tmp_path / "parts" / "0", "")
    before = (tmp_path / "units" / "sample.json").read_text()
    monkeypatch.setattr(hosts, "is_writer", lambda: False)
    pipeline.tidy(planned(units, tmp_path), tmp_path)
    pipeline.execute(planned(units, tmp_path), tmp_path)
    files.write_text(tmp_path / "more", "")
    files.write_arrays(tmp_path / "more.npz", {})
    assert (tmp_path / "parts").exists() and not list(tmp_path.glob("more*"))
    assert (tmp_path / "units" / "sample.json").read_text() == before
