"""Damaged checkpoints: each change of a file is noticed, the last intact one is used, and an old one without checksums loads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlaif_jax.errors import UserError
from rlaif_jax.trainers.checkpoint import Checkpoints

PARAMS = {"w": jnp.arange(600.0).reshape(20, 30), "b": jnp.ones(7, jnp.bfloat16)}
REST = {"step": jnp.int32(3), "moments": {"w": jnp.zeros((20, 30))}}
WANTED = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (PARAMS, REST))
TIMES = ("commit_success.txt", "_CHECKPOINT_METADATA")  # they hold the time of the save, and no state


def _plus(tree, step):
    return jax.tree.map(lambda x: x + step, tree)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints, of which the first is the best."""
    folder = tmp_path_factory.mktemp("saved") / "sft" / "checkpoints"
    checkpoints = Checkpoints(folder, keep_last=2)
    for step, score in ((1, 0.9), (2, 0.1), (3, 0.5)):
        checkpoints.save(step, _plus(PARAMS, step), _plus(REST, step), {"data": {"position": step}, "scores": []}, score)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "sft" / "checkpoints")
    return tmp_path / "sft" / "checkpoints"


def _damages(path):
    """The file with a flipped bit, cut in the middle, emptied and deleted, one after the other."""
    whole = path.read_bytes()
    at = len(whole) // 2
    yield bytes([*whole[:at], whole[at] ^ 16, *whole[at + 1 :]])
    yield whole[:at]
    yield b""
    yield None
    path.write_bytes(whole)


def test_every_damaged_file_is_noticed_and_named(folder):
    checkpoints, seen = Checkpoints(folder), 0
    assert checkpoints.steps() == [1, 2, 3] and not any(checkpoints.damage(step) for step in (1, 2, 3))
    for path in sorted(p for p in (folder / "3").rglob("*") if p.is_file() and p.name not in TIMES):
        for content in _damages(path):
            path.unlink(missing_ok=True)
            if content is not None:
                path.write_bytes(content)
            damage = checkpoints.damage(3)
            assert damage and (path.name == "sums.json" or str(path) in damage), (path, content)
            seen += 1
    assert seen > 60 and not checkpoints.damage(3)


def test_training_goes_on_from_the_last_intact_one_and_says_so(folder):
    (folder / "3" / "params" / "manifest.ocdbt").write_bytes(b"")
    checkpoints, said = Checkpoints(folder), []
    assert checkpoints.newest_intact(said.append) == 2
    assert len(said) == 1 and "checkpoint 3 was damaged and is deleted" in said[0] and "goes on from checkpoint 2" in said[0]
    assert str(folder / "3" / "params" / "manifest.ocdbt") in said[0] and not (folder / "3").exists()
    params, rest, meta = checkpoints.restore(2, *WANTED)
    jax.tree.map(np.testing.assert_array_equal, (params, rest), (_plus(PARAMS, 2), _plus(REST, 2)))
    assert meta["data"] == {"position": 2}
    checkpoints.save(3, PARAMS, REST, {"data": {}}, 0.2)
    checkpoints.close()
    assert checkpoints.steps() == [1, 2, 3] and checkpoints.selected_step("best") == 1


def test_a_damaged_score_of_an_older_one_does_not_stop_the_training(folder):
    (folder / "1" / "metrics" / "metrics").write_bytes(b"{")
    checkpoints, said = Checkpoints(folder), []
    assert checkpoints.newest_intact(said.append) == 3 and "checkpoint 1 was damaged" in said[0]
    checkpoints.save(4, PARAMS, REST, {"data": {}}, 0.2)
    checkpoints.close()
    assert checkpoints.selected_step("best") == 3


def test_with_none_intact_the_error_names_the_folder_and_what_to_do(folder):
    for step in ("1", "2", "3"):
        (folder / step / "rest" / "_METADATA").unlink()
    with pytest.raises(UserError, match="no checkpoint in .* is intact. Restore it, or delete the folder") as caught:
        Checkpoints(folder).newest_intact(print)
    assert str(folder.parent) in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_damaged_parameters_are_never_loaded(folder):
    data = max((folder / "3" / "params").rglob("*"), key=lambda p: p.stat().st_size if p.is_file() else 0)
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 1
    data.write_bytes(content)
    with pytest.raises(UserError, match=r"differs from its checksum.*delete .*done\.json"):
        Checkpoints(folder).restore_params(3, WANTED[0])
    jax.tree.map(np.testing.assert_array_equal, Checkpoints(folder).restore_params(2, WANTED[0]), _plus(PARAMS, 2))


def test_a_checkpoint_of_an_earlier_version_has_no_checksums_and_loads(folder):
    (folder / "3" / "sums.json").unlink()
    assert "sums.json is missing" in Checkpoints(folder).damage(3)
    (folder / "3" / "meta" / "metadata").write_text('{"data": {"position": 3}}')
    checkpoints = Checkpoints(folder)
    assert checkpoints.newest_intact(print) == 3
    jax.tree.map(np.testing.assert_array_equal, checkpoints.restore(3, *WANTED)[0], _plus(PARAMS, 3))


def test_what_cannot_be_read_or_written_is_one_line(folder, tmp_path):
    (folder / "3" / "sums.json").unlink()
    (folder / "3" / "meta" / "metadata").write_text('{"data": {}}')
    shutil.rmtree(folder / "3" / "params" / "d")
    with pytest.raises(UserError, match="3/params cannot be read") as caught:
        Checkpoints(folder).restore_params(3, WANTED[0])
    assert len(str(caught.value).splitlines()) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="checkpoint 1 cannot be written to") as caught:
        Checkpoints(tmp_path / "file" / "checkpoints").save(1, PARAMS, REST, {}, 0.0)
    assert len(str(caught.value).splitlines()) == 1


FULL = '''
import logging, resource, signal, sys
from pathlib import Path
import jax.numpy as jnp
from rlaif_jax.errors import UserError
from rlaif_jax.trainers.checkpoint import Checkpoints

logging.basicConfig()
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
checkpoints = Checkpoints(Path(sys.argv[1]))
checkpoints.save(1, {"w": jnp.ones(1000)}, {"step": jnp.int32(1)}, {}, 0.0)
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with checkpoints:
        checkpoints.save(2, {"w": jnp.linspace(0, 1, 300_000) ** 2}, {"step": jnp.int32(2)}, {}, 0.0)
except UserError as error:
    print(error)
'''


def test_a_save_that_fails_in_the_background_is_one_line_and_the_one_before_stays(tmp_path):
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "XLA_FLAGS": ""}
    command = [sys.executable, "-c", FULL, str(tmp_path / "checkpoints")]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("\n") == 1 and "checkpoint 2 cannot be written to" in done.stdout, done.stdout + done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.steps() == [1] and not checkpoints.damage(1)
