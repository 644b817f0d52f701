"""What README and docs say: links lead somewhere, examples run, every command is one that the program takes."""

import argparse
import ast
import contextlib
import io
import pathlib
import re
import runpy
import shlex
import subprocess
import sys

import pytest
from absl import flags

from tdsm_jax import config as configuration
from tdsm_jax import main, manual
from tdsm_jax.benchmark import __main__ as benchmarks
from tdsm_jax.data.sources import SOURCES
from tdsm_jax.errors import UserError
from tdsm_jax.labels.estimators import ESTIMATORS
from tdsm_jax.labels.losses import LOSSES
from tdsm_jax.validation import validate

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "launch" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
NEEDS = "# needs: "  # at the end of a command: what has to be there that a test does not have
# Programs that these pages call beside Python; what they are called with is theirs to judge.
OTHERS = {"docker", "gcloud", "sbatch", "tail", "pip"}


def blocks(page, language):
    """The fenced blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def commands(page):
    """Yields (command, what it needs) of the bash blocks of a page: continued lines joined, comments apart."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            line, _, needs = line.partition(NEEDS)
            yield from ((part, needs) for part in split(line))


def split(line):
    """The commands of one line as lists of words: what stands in a loop or after && counts by itself."""
    words = shlex.split(re.sub(r"\w+=\(.*?\)", "", line), comments=True)  # without arrays of the shell
    command, found = [], []
    for word in words:
        ends = word.endswith(";")
        if word in ("&&", "||", "|", "do", "done"):
            found.append(command)
            command = []
            continue
        command.append(word.removesuffix(";"))
        if ends:
            found.append(command)
            command = []
    return [c for c in (*found, command) if c and not c[0].startswith(("for", "while", "sleep", "done"))]


COMMANDS = [(page, words, needs) for page in PAGES for words, needs in commands(page)]


def arguments_of(words):
    """(module, arguments) of a command line that runs one of ours, else None; variables before it are left out."""
    words = [word for word in words if not re.fullmatch(r"[A-Z_]+=\S*", word)]
    if words[:2] == ["python", "-m"]:
        module, rest = words[2], words[3:]
    elif words[:1] == ["tdsm-jax"]:
        named = len(words) > 1 and words[1] in manual.COMMANDS
        module, rest = f"tdsm_jax.{words[1] if named else 'main'}", words[2 if named else 1 :]
    else:
        return None
    if module == "tdsm_jax.benchmark" and rest:
        module, rest = f"tdsm_jax.benchmark.{rest[0]}", rest[1:]
    return module, rest


class Parsed(BaseException):  # which no command takes for an error of its own
    """The command line was understood; nothing was run."""


def check_main(arguments):
    """Flags and keys as the program parses them, the config as it judges it; paths need not be there."""
    argv = main.complete(["main", *arguments])
    fresh = flags.FlagValues()
    for name in (
        "workdir",
        "stages",
        "dry_run",
        "distributed",
        "coordinator",
        "num_processes",
        "process_id",
        "overwrite",
    ):
        fresh[name] = flags.FLAGS[name]
    pages = {f"--{name}" for name in main._PAGES}
    given = [argument for argument in argv[1:] if argument not in pages]
    settings = [a for a in given if a.lstrip("-").startswith("config.")]
    saved = {name: (fresh[name].value, fresh[name].present) for name in fresh}
    try:
        left = fresh(["main", *(a for a in given if a not in settings and not a.startswith("--config="))])
    finally:
        for name, (value, present) in saved.items():
            fresh[name].value, fresh[name].present = value, present
    assert left == ["main"], left
    specification = next((a.partition("=")[2] for a in given if a.startswith("--config=")), None)
    if specification is None:
        assert set(argv[1:]) & pages or "--helpfull" in argv, f"neither a config nor a page: {arguments}"
        return
    config = configuration.load(specification)
    for setting in settings:
        key, given, value = setting.lstrip("-").removeprefix("config.").partition("=")
        assert given and key in configuration.flatten(config), f"{setting} is no key with a value"
        with config.unlocked():
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(value)
            section, _, name = key.rpartition(".")
            target = config
            for part in filter(None, section.split(".")):
                target = target[part]
            known = target[name]
            target[name] = type(known)(value) if not isinstance(known, tuple) else value
    validate(config)


def check_small(module, arguments, monkeypatch):
    """The module's own parser reads the arguments; what it would do is not done."""

    parse_args = argparse.ArgumentParser.parse_args

    def parse(parser, *given):
        parse_args(parser, *given)
        raise Parsed

    # Not run_command: modules that are imported already have it by their own name.
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with contextlib.redirect_stdout(io.StringIO()), pytest.raises((Parsed, SystemExit)) as ended:
        runpy.run_module(module, run_name="__main__")
    assert ended.type is Parsed or ended.value.code in (None, 0)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")  # run as a program, though it is imported
@pytest.mark.parametrize(
    ("page", "words", "needs"), COMMANDS, ids=[f"{page.name}-{number}" for number, (page, *_) in enumerate(COMMANDS)]
)
def test_every_command_is_one_that_the_program_takes(page, words, needs, monkeypatch):
    monkeypatch.chdir(ROOT)
    ours = arguments_of([re.sub(r"\$\{?\w+\}?", "0", word) for word in words])
    if ours is None:
        check_other(words, needs)
        return
    module, arguments = ours
    if module == "pdoc":
        assert (ROOT / "tdsm_jax").is_dir() and "tdsm_jax" in arguments
    elif module == "tdsm_jax.main":
        check_main(arguments)
    elif module == "tdsm_jax.benchmark.torch":  # its flags are absl's, and PyTorch may be missing
        source = manual.module_file("benchmark.torch").read_text()
        names = [argument.lstrip("-").partition("=")[0].partition(".")[0] for argument in arguments]
        assert all(f'"{name.removeprefix("no")}"' in source for name in names)
    elif module == "tdsm_jax.benchmark":
        assert not arguments or arguments == ["--help"]
    else:
        assert module.removeprefix("tdsm_jax.") in (*manual.COMMANDS, *(f"benchmark.{b}" for b in benchmarks.COMMANDS))
        check_small(module, arguments, monkeypatch)


def check_other(words, needs):
    """A script of launch/ exists and knows its action; assignments are no commands; other programs are known ones."""
    words = [word for word in words if not re.match(r"\w+=", word)]
    if not words or words[0] in OTHERS:
        assert not words or words[0] != "pip" or needs, f"{words} needs a network: say so"
        return
    script = words[1] if words[0] == "bash" else words[0]
    assert (ROOT / script).is_file(), f"{words}: no such program"
    if not script.startswith("launch/"):
        return
    usage = subprocess.run(["bash", script, "--help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    action = words[words.index(script) + 1 :][:1]
    assert not action or action[0].startswith("-") or action[0] in usage


def anchors(page):
    """The anchors that GitHub gives the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda page: f"{page.parent.name}-{page.name}")
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name} links to {target}, which is not there"
        assert not anchor or anchor in anchors(path), f"{page.name} links to {target}: no such heading"


def test_the_index_names_every_page():
    text = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in text, page.name
    assert "(docs/README.md)" in (ROOT / "README.md").read_text()


@pytest.mark.slow
def test_the_reference_is_made_of_the_docstrings(tmp_path):
    pytest.importorskip("pdoc")
    words = next(words for _, words, _ in COMMANDS if "pdoc" in words)
    words = [sys.executable, *words[1:]]
    words[words.index("--output-directory") + 1] = str(tmp_path)
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Couldn't import" not in done.stderr
    page = (tmp_path / "tdsm_jax" / "diffusion" / "mixture.html").read_text()
    assert "Returns the mixture with the column floor of S moved onto the null label." in page


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "docs" / "extending.md", "python"))))
def test_the_examples_of_new_parts_run_as_they_stand(number):
    tables = (LOSSES, ESTIMATORS, SOURCES)
    before = [dict(table) for table in tables]
    try:
        exec(compile(blocks(ROOT / "docs" / "extending.md", "python")[number], "extending.md", "exec"), {})
    finally:
        for table, kept in zip(tables, before, strict=True):
            table.clear()
            table.update(kept)


def test_a_command_with_a_flag_that_is_gone_is_noticed(monkeypatch):
    with pytest.raises(flags.UnrecognizedFlagError):
        check_main(["--config=digits", "--workdir=w", "--wrokdir=w"])
    with pytest.raises(AssertionError, match="score.stepz"):
        check_main(["--config=digits", "--workdir=w", "--config.score.stepz=1"])
    with pytest.raises(UserError, match="nose"):
        check_main(["--config=digits:nose=sym", "--workdir=w"])
    with pytest.raises(AssertionError, match="SystemExit"):
        check_small("tdsm_jax.data.convert", ["--source=digits", "--out=x", "--no_such"], monkeypatch)
