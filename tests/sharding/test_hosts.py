"""Two processes with four virtual devices each, and what the environment says about processes."""

import sys

import pytest

from rlaif_jax.commands.launch import Launch, supervise
from rlaif_jax.errors import UserError
from rlaif_jax.sharding.distributed import settings

SLURM = {"SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}


def test_two_processes_share_rows_trees_and_values():
    said = []
    code = supervise([sys.executable, "-m", "tests.sharding.hosts_worker"], Launch(local=2, devices=4, restarts=0), said.append)
    assert code == 0, said


@pytest.mark.slow
def test_devices_that_have_met_wait_for_a_late_process():
    said = []
    command = [sys.executable, "-m", "tests.sharding.hosts_worker", "late"]
    assert supervise(command, Launch(local=2, devices=4, restarts=0), said.append) == 0, said


def test_variables_come_first():
    env = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"} | SLURM
    source, found = settings(env, tpu=True)
    assert source == "variables"
    assert found == {"coordinator_address": "host:1", "num_processes": 4, "process_id": 3}
    assert settings(env | {"JAX_NUM_PROCESSES": "1", "JAX_PROCESS_ID": "0"}, tpu=True) == ("one", {})
    assert settings({"JAX_NUM_PROCESSES": "1"}, tpu=True) == ("one", {}), "one process needs no address"
    with pytest.raises(UserError, match="SLURM_NTASKS=x"):
        settings(SLURM | {"SLURM_NTASKS": "x"}, tpu=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": None}, "JAX_PROCESS_ID is not"),
        ({"JAX_PROCESS_ID": "4"}, "an index below it"),
        ({"JAX_NUM_PROCESSES": "many"}, "expected a count"),
        ({"JAX_COORDINATOR_ADDRESS": "host"}, "host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:abc"}, "host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:"}, "host:port"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:65536"}, "host:port"),
        ({"JAX_COORDINATOR_ADDRESS": None}, "JAX_NUM_PROCESSES, JAX_PROCESS_ID is set, but JAX_COORDINATOR_ADDRESS is not"),
        ({"JAX_COORDINATOR_ADDRESS": None, "JAX_PROCESS_ID": None}, "JAX_NUM_PROCESSES is set"),
    ],
)
def test_variables_that_make_no_sense_are_named(change, message):
    env = {"JAX_COORDINATOR_ADDRESS": "host:1", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"} | change
    with pytest.raises(UserError, match=message):
        settings({k: v for k, v in env.items() if v is not None}, tpu=False)


def test_one_slurm_task_on_a_node_takes_all_of_its_gpus():
    alone = SLURM | {"SLURM_STEP_TASKS_PER_NODE": "1(x2)", "SLURM_GPUS_ON_NODE": "8"}
    assert settings(alone, tpu=False) == ("slurm", {"cluster_detection_method": "slurm", "local_device_ids": list(range(8))})
    each = SLURM | {"SLURM_NTASKS": "16", "SLURM_STEP_TASKS_PER_NODE": "8(x2)", "SLURM_GPUS_ON_NODE": "8"}
    assert settings(each, tpu=False) == ("slurm", {"cluster_detection_method": "slurm"})


def test_a_lone_process_stays_alone():
    assert settings({}, tpu=False) == ("one", {})
    assert settings({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, tpu=False) == ("one", {}), "a batch script outside srun"
    assert settings(SLURM | {"SLURM_NTASKS": "1"}, tpu=False) == ("one", {})
    assert settings({}, tpu=True) == ("tpu", {})
    assert settings({"JAX_PLATFORMS": "cpu"}, tpu=True) == ("one", {})
