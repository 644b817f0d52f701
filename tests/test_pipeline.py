"""Units in order: what is left behind is swept, and a page stands only while everything before it is done."""

import pathlib

import pytest

from tdsm_jax import files, hosts, pipeline
from tdsm_jax.errors import Stopped
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


def test_what_a_kill_left_of_a_finished_unit_is_swept(tmp_path):
    units = [writing(tmp_path, "sample", scratch=("parts",)), writing(tmp_path, "measure", scratch=("others",))]
    run(units[:1], tmp_path)
    for left in ("parts", "others"):
        files.write_text(tmp_path / left / "0", "")
    (tmp_path / ".sample.x.partial").touch()
    pipeline.sweep(planned(units, tmp_path), tmp_path)
    assert not (tmp_path / "parts").exists() and not (tmp_path / ".sample.x.partial").exists()
    assert (tmp_path / "others").exists()  # of a unit that goes on


def test_one_host_writes(tmp_path, monkeypatch):
    units = [writing(tmp_path, "sample", scratch=("parts",))]
    run(units, tmp_path)
    files.write_text(tmp_path / "parts" / "0", "")
    before = (tmp_path / "units" / "sample.json").read_text()
    monkeypatch.setattr(hosts, "is_writer", lambda: False)
    pipeline.sweep(planned(units, tmp_path), tmp_path)
    pipeline.execute(planned(units, tmp_path), tmp_path)
    files.write_text(tmp_path / "more", "")
    files.write_arrays(tmp_path / "more.npz", {})
    assert (tmp_path / "parts").exists() and not list(tmp_path.glob("more*"))
    assert (tmp_path / "units" / "sample.json").read_text() == before
