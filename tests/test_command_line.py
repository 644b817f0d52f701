"""The way in: pages of help, configs by name from any folder, the other commands, what terminals and logs are shown."""

import io
import os
import pathlib
import subprocess
import sys

import pytest

from tdsm_jax import __main__ as program
from tdsm_jax import command, main, manual
from tdsm_jax import config as configuration
from tdsm_jax.benchmark import __main__ as benchmarks
from tdsm_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
# A process that another one of this package starts; it is no command for people.
NO_COMMAND = {"tdsm_jax.benchmark.torch_baseline", "tdsm_jax.__main__"}


def call(*arguments, cwd=ROOT):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    command_line = [sys.executable, "-m", *arguments]
    return subprocess.run(command_line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)


def shown(*arguments):
    """What a page that is asked for prints; it must end the program as a success."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
        patch.setattr(sys, "stdout", out)
        main.parse_flags(["main", *arguments])
    assert ended.value.code == 0
    return out.getvalue()


def test_help_is_one_screen_of_our_own_flags():
    page = shown("--help")
    own = {flag.name for flag in main.flags.FLAGS.get_flags_for_module(main)}
    assert own and all(f"--{name}" in page for name in own - {"config_lock_file"})
    assert "--config=configs/digits.py --workdir=runs/digits" in page and ":smoke" in page
    assert len(page.splitlines()) < 45 and max(map(len, page.splitlines())) <= 120
    assert "verbosity" not in page and page == shown("-h")


def test_helpfull_has_the_flags_of_the_libraries_too():
    done = call("tdsm_jax.main", "--helpfull")
    assert "--verbosity" in done.stdout and "--workdir" in done.stdout, done.stderr


def test_version_is_that_of_the_package():
    assert shown("--version") == f"tdsm_jax {manual.__version__}\n"


def test_list_shows_each_config_with_the_arguments_it_takes():
    page = shown("--list")
    for path in configuration.runnable():
        assert f"configs/{path.name}: {manual.first_line(path)}" in page
        for name, default in configuration.arguments_of(path).items():
            assert f"{name}=" in page or default is False
            assert not isinstance(default, tuple) or all(choice in page for choice in default)
    assert "noise= sym, asym, pair, instance, sym_inclusive" in page and "rate=0.4" in page
    assert "edm.py:" not in page  # no config to run


@pytest.mark.parametrize("path", configuration.runnable(), ids=lambda path: path.stem)
def test_arguments_of_a_config_are_the_ones_it_accepts(path):
    taken = configuration.arguments_of(path)
    assert bool(taken) == (path.stem != "base")
    if taken and path.stem != "paper":  # which wants a cell
        module = configuration.load_module(path)
        module.get_config(",".join(name for name, default in taken.items() if default is False))
        with pytest.raises(UserError, match="unknown config argument 'no_such'"):
            module.get_config("no_such=1")


def test_every_module_that_can_be_run_is_listed():
    named = {*manual.COMMANDS, *(f"benchmark.{name}" for name in benchmarks.COMMANDS)}
    runnable = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
        for path in (ROOT / "tdsm_jax").rglob("*.py")
        if '__name__ == "__main__"' in path.read_text()
    } - NO_COMMAND - {"tdsm_jax"}  # fmt: skip
    assert runnable == {f"tdsm_jax.{name}" for name in named}
    assert manual.first_line(manual.module_file("compare")) in manual.commands()


def test_a_command_is_the_module_of_its_name():
    done = call("tdsm_jax", "data.convert", "--help")
    assert done.returncode == 0 and done.stdout == call("tdsm_jax.data.convert", "--help").stdout
    done = call("tdsm_jax", "evaluat")
    assert (done.returncode, done.stderr) == (2, "error: no command 'evaluat'; did you mean 'evaluate'?\n")


def test_without_a_command_it_is_the_main_job(monkeypatch):
    ran = []
    monkeypatch.setattr(program.runpy, "run_module", lambda name, **_: ran.append((name, sys.argv[1:])))
    for argv in (["tdsm-jax"], ["tdsm-jax", "--list"], ["tdsm-jax", "paper", "--smoke"]):
        monkeypatch.setattr(sys, "argv", argv)
        program.entry_point()
    assert ran == [("tdsm_jax.main", []), ("tdsm_jax.main", ["--list"]), ("tdsm_jax.paper", ["--smoke"])]


@pytest.mark.parametrize("name", ["digits", "digits.py", "configs/digits.py"])
def test_configs_of_the_program_have_names_in_any_folder(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert configuration.locate(f"{name}:smoke") == (configuration.CONFIGS / "digits.py", "smoke")
    assert configuration.load(f"{name}:rate=0.3").label_noise.rate == 0.3
    expected = f"--config={configuration.CONFIGS / 'digits.py'}:smoke"
    assert main.complete(["main", f"--config={name}:smoke"]) == ["main", expected]
    assert main.complete(["main", "--config", f"{name}:smoke"]) == ["main", "--config", expected.partition("=")[2]]


def test_a_file_that_is_there_comes_before_a_config_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = "import ml_collections\ndef get_config(arguments): return ml_collections.ConfigDict({'mine': arguments})"
    pathlib.Path("digits.py").write_text(made)
    assert configuration.load("digits.py:x").to_dict() == {"mine": "x"}
    with pytest.raises(UserError, match="no config file other/digits.py; did you mean 'configs/digits.py'"):
        configuration.locate("other/digits.py")


@pytest.mark.parametrize(
    ("given", "meant"), [("configs/cifar.py", "cifar10"), ("mnits", "mnist"), ("configs/cifar10n", "cifar10n")]
)
def test_a_mistyped_config_is_named_with_the_nearest(given, meant):
    with pytest.raises(UserError, match=f"no config file {given}; did you mean 'configs/{meant}.py'"):
        main.complete(["main", f"--config={given}", "--workdir=w"])


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "given", "coloured"),
    [
        (Terminal(), {}, True),
        (Terminal(), {"NO_COLOR": "1"}, False),
        (Terminal(), {"TERM": "dumb"}, False),
        (io.StringIO(), {}, False),
    ],
)
def test_colour_is_for_terminals_that_want_it(stream, given, coloured, monkeypatch):
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(SystemExit):
        monkeypatch.setattr(sys, "argv", ["x", "--no_such"])
        command.run_command(command.new_parser("x"), lambda _: None)
    assert ("\033[31m" in stream.getvalue()) == coloured and "--no_such; --help shows examples" in stream.getvalue()
