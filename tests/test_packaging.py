"""What is installed: the constraint files, and the configs inside the package."""

import importlib.resources
import re
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "constraints").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_constraints_are_plain_versions_within_the_bounds(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert not [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)]
    assert not [line for line in lines if line.startswith(("nvidia", "cuda", "triton"))], "they belong to one build of torch"
    versions = dict(line.split("==") for line in lines)
    assert list(versions) == sorted(versions) and len(versions) == len(lines)
    for need in map(Requirement, requires("rlaif_jax")):
        if need.marker is None or need.marker.evaluate({"extra": "dev"}):
            assert need.specifier.contains(versions[canonicalize_name(need.name)]), f"{path.name} breaks {need}"


def test_the_configs_are_installed_inside_the_package():
    installed = {file.name for file in importlib.resources.files("rlaif_jax.configs").iterdir() if file.name.endswith(".py")}
    assert installed == {file.name for file in (ROOT / "configs").glob("*.py")}


@pytest.mark.parametrize("file", ["py.typed", "evaluation/templates/report.html.j2", "feedback/rules/zh/principles.txt"])
def test_what_is_no_code_is_installed_too(file):
    assert (importlib.resources.files("rlaif_jax") / file).is_file()
