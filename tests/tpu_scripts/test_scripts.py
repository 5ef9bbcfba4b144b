"""Every script against the fake cloud: success, no capacity, preemption, wrong arguments, dry run."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tpu_scripts.conftest import ROOT, SCRIPTS

ALL = sorted(path.name for path in SCRIPTS.glob("*.sh"))
ON_TPU = ["create.sh", "wait.sh", "sync.sh", "setup.sh", "run.sh", "status.sh", "logs.sh", "stop.sh", "delete.sh", "supervise.sh"]
COMMAND = ("--", "echo", "hello  world", "a'b")


def test_shellcheck_is_clean():
    shellcheck = Path(sys.executable).with_name("shellcheck")
    found = shellcheck if shellcheck.exists() else shutil.which("shellcheck")
    assert found, "shellcheck is missing: pip install -e '.[dev]'"
    done = subprocess.run([str(found), *(str(SCRIPTS / name) for name in ALL)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_whole_life(bench):
    bench.ok("create.sh")
    bench.ok("wait.sh")
    bench.ok("setup.sh", RLAIF_MOUNT="mkdir -p ~/shared && touch ~/shared/mounted")
    for worker in (0, 1):
        assert (bench.home(worker) / "rlaif_code/setup.py").read_bytes() == (ROOT / "setup.py").read_bytes()
        assert "rlaif_code[tpu]" in (bench.home(worker) / "pip.log").read_text()
        assert (bench.home(worker) / "shared/mounted").exists()
    bench.ok("run.sh", *COMMAND)
    for worker in (0, 1):
        assert "hello  world a'b\n" in bench.wait_for("ended with exit code 0", worker)
    out = bench.ok("status.sh")
    assert "queued resource: ACTIVE" in out and "TPU: READY" in out and out.count("rlaif-worker: exited 0") == 2
    logs = bench.ok("logs.sh")
    assert "[worker 0] hello  world a'b" in logs and "[worker 1] hello  world a'b" in logs
    bench.ok("logs.sh", "--fetch", str(bench.folder / "logs"))
    assert "hello  world" in (bench.folder / "logs/worker-1.log").read_text()
    assert bench.run("delete.sh").returncode == 2, "nobody can be asked, and --yes was not said"
    bench.ok("delete.sh", "--yes")
    assert bench.run("status.sh").returncode == 4


def test_delete_tells_gone_from_not_deleted(bench):
    done = bench.run("delete.sh", "--yes")
    assert done.returncode == 0 and "nothing to delete" in done.stderr and "delete" not in bench.verbs()
    bench.plan(stray=True)
    done = bench.run("delete.sh", "--yes")
    assert done.returncode == 1 and "a TPU of that name READY" in done.stderr, "it costs, and no request made it"
    bench.plan(busy=1)
    bench.ok("create.sh")
    done = bench.run("delete.sh", "--yes")
    assert done.returncode == 1 and "t is not deleted" in done.stderr
    assert "t is deleted" in bench.run("delete.sh", "--yes").stderr


def test_create_asks_for_what_was_said(bench):
    bench.ok("create.sh", "--capacity=reserved", "--accelerator-type", "v6e-32", "--internal-ips", "--valid-until", "6h")
    (call,) = bench.calls
    for flag in ("--reserved", "--accelerator-type=v6e-32", "--runtime-version=v2-alpha-tpuv6e", "--internal-ips",
                 "--valid-until-duration=6h", "--async", "--node-id=t"):  # fmt: skip
        assert flag in call
    assert "--spot" not in call


@pytest.mark.parametrize(
    ("answers", "attempts", "code", "message", "asked"),
    [
        (["stockout", "stockout", "ok"], "0", 0, "no capacity (attempt 2)", 3),
        (["stockout", "stockout", "ok"], "2", 3, "no capacity for v5litepod-64", 2),
        (["quota", "ok"], "0", 1, "quota", 1),
        (["exists"], "0", 1, "exists already", 1),
        (["denied"], "0", 1, "PERMISSION_DENIED", 1),
    ],
)
def test_create_asks_again_only_where_it_can_help(bench, answers, attempts, code, message, asked):
    bench.plan(create=answers)
    done = bench.run("create.sh", "--attempts", attempts)
    assert done.returncode == code and message in done.stderr
    assert len(bench.calls) == asked


@pytest.mark.parametrize(
    ("states", "code", "message"),
    [
        (["WAITING_FOR_RESOURCES", "PROVISIONING"], 0, "ACTIVE"),
        (["WAITING_FOR_RESOURCES", "FAILED"], 3, "delete.sh, then create.sh"),
        (["PROVISIONING", "SUSPENDED"], 3, "SUSPENDED"),
        (["DOWN", "DOWN"], 0, "ACTIVE"),
        (["DOWN"] * 12, 5, "ten times"),
    ],
)
def test_wait(bench, states, code, message):
    bench.plan(states=states)
    bench.ok("create.sh")
    done = bench.run("wait.sh")
    assert done.returncode == code and message in done.stderr


def test_wait_knows_that_there_is_nothing_and_gives_up_in_time(bench):
    assert bench.run("wait.sh").returncode == 4
    bench.plan(states=["WAITING_FOR_RESOURCES"] * 9)
    bench.ok("create.sh")
    done = bench.run("wait.sh", "--timeout", "0")
    assert done.returncode == 1 and "stays in the queue" in done.stderr


def test_sync_removes_what_is_gone_and_keeps_runs(ready):
    code = ready.home(1) / "rlaif_code"
    (code / "runs").mkdir()
    (code / "old.py").touch()
    synced = ready.home(1) / ".rlaif_synced"
    synced.write_text("\n".join(sorted([*synced.read_text().split(), "old.py"])) + "\n")
    ready.ok("sync.sh")
    assert (code / "runs").exists() and not (code / "old.py").exists() and (code / "setup.py").exists()


def _checkout(folder):
    """A git checkout with these scripts, to be changed by a test."""
    shutil.copytree(SCRIPTS, folder / "tpu_scripts")
    subprocess.run(["git", "init", "-q", str(folder)], check=True)
    return folder


def test_sync_takes_every_name_and_every_link(bench, tmp_path):
    here, there = _checkout(tmp_path / "checkout"), bench.home(1) / "rlaif_code"
    names = ["文.txt", "two\nlines", "back\\slash\\061", " a b ", "'q\"", "%s", "-rf", "ä/ö/ü", "swap/file"]
    for name in names:
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_text(name)
    (here / "to_folder").symlink_to("tpu_scripts")
    (here / "to_nowhere").symlink_to("not/there")
    bench.ok("create.sh")
    bench.ok(str(here / "tpu_scripts/sync.sh"))
    assert [(there / name).read_text() for name in names] == names
    assert (there / "to_folder").readlink() == Path("tpu_scripts") and (there / "to_nowhere").is_symlink()
    (there / "ä/kept").touch()  # a run's, say
    for name in names:
        (here / name).unlink()
    (here / "swap").rmdir()
    (here / "swap").symlink_to("tpu_scripts")  # where a folder was, and the other way round
    (here / "to_folder").unlink()
    (here / "to_folder").mkdir()
    (here / "to_folder/file").touch()
    bench.ok(str(here / "tpu_scripts/sync.sh"))
    assert not any((there / name).exists() for name in names) and (there / "ä/kept").exists() and not (there / "ä/ö").exists()
    assert (there / "swap").is_symlink() and (there / "to_folder/file").exists() and not (there / "to_folder").is_symlink()
    assert (there / "tpu_scripts/worker.sh").exists() and not (there / "tpu_scripts/file").exists()


def _alive(pid: int) -> bool:
    """Not a zombie either: in a container nobody may reap it."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_stop_reaches_every_process_and_a_second_start_is_refused(ready):
    ready.ok("run.sh", "--", "bash", "-c", "sleep 300 & printf '%s=%s.\\n' child $!; wait")
    child = int(ready.wait_for("child=").split("child=")[1].split(".")[0])
    done = ready.run("run.sh", *COMMAND)
    assert done.returncode != 0 and "running already" in done.stdout
    assert ready.ok("stop.sh").count("exited 143") == 2
    assert not _alive(child)
    ready.ok("run.sh", "--", "bash", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.2; done")
    for worker in (0, 1):
        ready.wait_for("deaf", worker)
    out = ready.ok("stop.sh", "--grace", "1")
    assert out.count("killed") == 2 and out.count("rlaif-worker: lost") == 2


def test_a_job_of_before_a_reboot_is_lost_and_its_number_is_left_alone(ready):
    job = ready.home() / "rlaif_jobs/rlaif"
    job.mkdir(parents=True)
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:  # has the number that the job had
        (job / "pid").write_text(f"{stranger.pid}\n")
        assert "rlaif-worker: lost" in ready.ok("status.sh") and "rlaif-worker: lost" in ready.ok("stop.sh")
        assert stranger.poll() is None
        stranger.kill()


@pytest.mark.parametrize("text", ["", "1", "0", "-1", "many"])
def test_a_broken_pid_file_is_no_process_group(tmp_path, text):
    """`kill -- -1` would end every process of the user: such a number must never come to kill."""
    job = tmp_path / "rlaif_jobs/j"
    job.mkdir(parents=True)
    (job / "pid").write_text(text + "\n")
    # Not stop: were the check broken, this test would be the accident that it guards against.
    command = ["bash", str(SCRIPTS / "worker.sh"), "status", "j"]
    done = subprocess.run(command, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    assert done.stdout == "rlaif-worker: lost\n"


def _supervise(bench, tmp_path, body: str, *options: str, **env: str):
    """Every start of the job takes the next free number $n on the shared folder and then does `body`."""
    # mkdir, since two workers that start together must never read the same number.
    job = f"cd {tmp_path}; n=1; until mkdir start$n 2>/dev/null; do n=$((n + 1)); done; {body}"
    return bench.run("supervise.sh", *options, "--", "bash", "-c", job, **env)


def test_supervise_recreates_after_a_preemption_and_resumes(bench, tmp_path):
    bench.plan(create=["stockout"], states=["WAITING_FOR_RESOURCES"], preempt_after=4)
    done = _supervise(bench, tmp_path, "[ $n -gt 2 ] || sleep 300", "--delete-when-done", RLAIF_POLL="1")
    assert done.returncode == 0, done.stderr
    assert "no capacity" in done.stderr and "preempted" in done.stderr and "succeeded on every worker" in done.stderr
    assert len(list(tmp_path.glob("start*"))) == 4  # two workers, two lives
    verbs = [v for v in bench.verbs() if v in ("create", "scp", "delete")]
    assert verbs == ["create", "create", "scp", "delete", "create", "scp", "delete"]


def test_supervise_starts_a_dead_job_again_and_leaves_the_tpu(bench, tmp_path):
    done = _supervise(bench, tmp_path, "if [ $n = 1 ]; then exit 7; elif [ $n = 2 ]; then sleep 300; fi", RLAIF_POLL="1")
    assert done.returncode == 0, done.stderr
    assert "the job died (7); restart 1 of 10" in done.stderr and "costs until" in done.stderr
    assert "delete" not in bench.verbs()


def test_supervise_notes_that_a_run_needs_a_folder_that_outlives_the_tpu(bench):
    command = ("--dry-run", "--", "rlaif", "run", "c.py", "--out", "/mnt/rlaif/run1")
    assert "outlives the TPU" in bench.run("supervise.sh", *command).stderr
    assert "outlives the TPU" not in bench.run("supervise.sh", "--mount-command", "true", *command).stderr


def test_supervise_does_not_count_a_job_that_was_told_to_stop(bench, tmp_path):
    done = _supervise(bench, tmp_path, "[ $n -gt 2 ] || exit 75", "--max-restarts", "0", RLAIF_POLL="1")
    assert done.returncode == 0, done.stderr
    assert "got a signal to stop and has saved" in done.stderr and "died" not in done.stderr


@pytest.mark.parametrize(
    ("body", "code", "message"), [("exit 7", 1, "the job died (7), and all 1 restarts are used up"), ("exit 2", 2, "exit code 2")]
)
def test_supervise_gives_up(bench, tmp_path, body, code, message):
    done = _supervise(bench, tmp_path, body, "--max-restarts", "1", "--delete-when-done", RLAIF_POLL="1")
    assert done.returncode == code and message in done.stderr
    assert bench.verbs()[-1] == "delete"


@pytest.mark.parametrize(("busy", "code"), [(4, 0), (99, 1)])
def test_supervise_deletes_or_says_that_it_did_not(bench, tmp_path, busy, code):
    bench.plan(busy=busy)
    done = _supervise(bench, tmp_path, "true", "--delete-when-done", RLAIF_POLL="1")
    assert done.returncode == code and bench.verbs().count("delete") == 5
    assert ("NOT deleted: it costs money until" in done.stderr) == bool(code)


def test_supervise_leaves_no_request_behind_when_waiting_ends(bench, tmp_path):
    bench.plan(states=["WAITING_FOR_RESOURCES"] * 999)
    done = _supervise(bench, tmp_path, "true", "--delete-when-done", "--timeout", "1", RLAIF_POLL="1")
    assert done.returncode == 1 and "still WAITING_FOR_RESOURCES" in done.stderr
    assert bench.verbs()[-1] == "delete"


@pytest.mark.slow
def test_supervise_waits_for_gcloud_within_its_time(bench, tmp_path):
    bench.plan(states=["WAITING_FOR_RESOURCES", *["DOWN"] * 15])
    done = _supervise(bench, tmp_path, "true", "--delete-when-done")
    assert done.returncode == 0 and "gcloud does not answer" in done.stderr, done.stderr
    bench.plan(states=["DOWN"] * 999)
    done = _supervise(bench, tmp_path, "true", "--delete-when-done", "--timeout", "3")
    assert done.returncode == 1 and "still UNKNOWN" in done.stderr and bench.verbs()[-1] == "delete"


@pytest.mark.parametrize(("plan", "code"), [({"answer_lost": True}, 0), ({"create": ["denied"]}, 1)])
def test_supervise_uses_a_request_that_stands_though_create_failed(bench, tmp_path, plan, code):
    bench.plan(**plan)
    done = _supervise(bench, tmp_path, "true", "--delete-when-done", RLAIF_POLL="1")
    assert done.returncode == code, done.stderr
    assert bench.verbs().count("create") == 1


@pytest.mark.parametrize(("restarts", "code", "lives"), [("1", 0, 2), ("0", 1, 1)])
def test_supervise_takes_workers_that_stay_silent_for_lost(bench, tmp_path, restarts, code, lives):
    bench.plan(deaf=1)
    options = ("--max-restarts", restarts, "--lost-after", "2", "--delete-when-done")
    done = _supervise(bench, tmp_path, "true", *options, RLAIF_POLL="1")
    assert done.returncode == code, done.stderr
    assert "checking again" in done.stderr and "the TPU counts as lost" in done.stderr
    assert [v for v in bench.verbs() if v in ("create", "delete")] == ["create", "delete"] * lives


@pytest.mark.slow
def test_supervise_does_not_blame_the_tpu_for_its_own_network(bench, tmp_path):
    bench.plan(states=[*["ACTIVE"] * 3, *["DOWN"] * 4], deaf=1)
    done = _supervise(bench, tmp_path, "true", "--max-restarts", "0", "--lost-after", "2", RLAIF_POLL="1")
    assert done.returncode == 1 and done.stderr.count("neither gcloud nor the workers") == 4, done.stderr
    assert done.stderr.rindex("neither gcloud") < done.stderr.index("counts as lost")


def test_supervise_asks_again_for_a_request_that_failed(bench, tmp_path):
    bench.plan(states=["WAITING_FOR_RESOURCES", "FAILED", "FAILED", "FAILED", "FAILED"])
    done = _supervise(bench, tmp_path, "true", RLAIF_POLL="1")
    assert done.returncode == 0, done.stderr
    assert [v for v in bench.verbs() if v in ("create", "delete")][:3] == ["create", "delete", "create"]


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("create.sh", ["--zoen", "x"], "unknown option --zoen"),
        ("create.sh", ["--follow"], "unknown option --follow"),
        ("create.sh", ["--zone"], "--zone needs a value"),
        ("create.sh", ["--zone", "x; rm -rf /"], "expected lower-case letters"),
        ("create.sh", ["--name", ""], "--name is missing"),
        ("create.sh", ["--capacity", "cheap"], "spot, reserved or on-demand"),
        ("create.sh", ["--attempts", "many"], "whole number"),
        ("create.sh", ["--accelerator-type", "h100-8"], "--runtime-version"),
        ("create.sh", ["stray"], "unexpected argument 'stray'"),
        ("run.sh", [], "no command"),
        ("run.sh", ["--job", "../up", *COMMAND], "--job is '../up'"),
        ("run.sh", ["--secrets", "NOT_SET_AT_ALL", *COMMAND], "not set in the environment"),
        ("supervise.sh", ["--secrets", "NOT_SET_AT_ALL", *COMMAND], "not set in the environment"),
        ("supervise.sh", [], "no command"),
        ("logs.sh", ["--worker", "first"], "a number or all"),
        ("gpu_hosts.sh", ["dance"], "expected sync, setup, run"),
        ("gpu_hosts.sh", ["run", "--hosts", "a b", *COMMAND], "host names separated by commas"),
        ("gpu_hosts.sh", ["run", "--hosts", "a"], "run needs a command"),
        ("gpu_slurm.sh", [], "no command"),
        ("xpk_example.sh", ["--cluster", "c", *COMMAND], "--docker-image is missing"),
        ("worker.sh", ["dance"], "worker.sh start JOB FLAGS"),
    ],
)
def test_wrong_arguments_are_named_and_nothing_runs(bench, script, arguments, message):
    done = bench.run(script, *arguments)
    assert done.returncode == 2 and message in done.stderr, done.stderr
    running = [call for call in bench.calls if call[4:5] != ["describe"]]
    assert not running


@pytest.mark.parametrize("script", ON_TPU)
def test_dry_run_prints_and_runs_nothing(bench, script):
    command = COMMAND if script in ("run.sh", "supervise.sh") else ()
    out = bench.ok(script, "--dry-run", *command)
    assert "gcloud compute tpus" in out and "--zone=us-west4-a" in out
    assert not bench.calls and not (bench.folder / "workers").exists()


def test_dry_run_of_the_other_ways(bench):
    out = bench.ok("gpu_hosts.sh", "run", "--hosts", "g0,g1", "--dry-run", *COMMAND)
    assert out.count("ssh -o BatchMode=yes") == 2
    out = bench.ok("gpu_slurm.sh", "rlaif", "run", "x.py", RLAIF_DRY_RUN="1")
    assert out.startswith("srun ") and "rlaif run x.py" in out
    out = bench.ok("xpk_example.sh", "--cluster", "c", "--docker-image", "i", "--dry-run", *COMMAND)
    assert out.startswith("xpk workload create")
    assert not bench.calls


@pytest.mark.parametrize("script", [name for name in ALL if name not in ("lib.sh", "worker.sh", "gpu_slurm.sh")])
def test_help(bench, script):
    out = bench.ok(script, "--help")
    assert script in out and "--dry-run" in out and not bench.calls


def test_gpu_hosts(bench):
    for host in ("g0", "g1"):
        bench.home(host).mkdir(parents=True)
    bench.ok("gpu_hosts.sh", "setup", "--hosts", "g0,g1")
    assert "rlaif_code[cuda]" in (bench.home("g1") / "pip.log").read_text()
    bench.ok("gpu_hosts.sh", "run", "--hosts", "g0,g1", "--", "bash", "-c", "env | grep ^JAX_ | sort | tr '\\n' ' '")
    wanted = "JAX_COORDINATOR_ADDRESS=g0:8476 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1"
    assert wanted in bench.wait_for("ended with exit code 0", "g1")
    bench.wait_for("ended with exit code 0", "g0")
    assert bench.ok("gpu_hosts.sh", "status", "--hosts", "g0,g1").count("exited 0") == 2
    assert "[g1] JAX_COORDINATOR_ADDRESS" in bench.ok("gpu_hosts.sh", "logs", "--hosts", "g0,g1")
    assert bench.run("gpu_hosts.sh", "status", "--hosts", "g0,g7").returncode == 1, "one host does not answer"


def test_slurm_and_xpk(bench):
    bench.ok("gpu_slurm.sh", "rlaif", "run", "x.py", SLURM_GPUS_ON_NODE="4")
    (call,) = bench.calls
    assert call[0] == "srun" and call[-5:] == ["none", "--", "rlaif", "run", "x.py"]
    done = bench.run("gpu_slurm.sh", "rlaif", "run", "x.py", SLURM_SUBMIT_DIR=str(bench.folder))
    assert done.returncode == 2 and "submit the script from one" in done.stderr and len(bench.calls) == 1
    bench.ok("xpk_example.sh", "--cluster", "c", "--docker-image", "i", "--secrets", "A_KEY", *COMMAND, A_KEY="sesame-open")
    assert (bench.folder / "xpk_env").read_text() == "A_KEY\n", "a name alone: xpk takes the value from the environment"
    assert "probe_flags.py none" in " ".join(bench.calls[-1])
