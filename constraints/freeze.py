"""Prints the versions of what this environment has of the project's requirements, theirs, and so on, one `name==version` a line.

    .venv/bin/python constraints/freeze.py > constraints/py311.txt

For `pip install -c`. Run it where the tests passed. What torch needs is left out: it differs between its builds for CPU and GPU.
"""

from importlib.metadata import PackageNotFoundError, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version


def versions(root: str, extras: set[str]) -> dict[str, str]:
    """Name -> public version of every installed package that `root[extras]` needs."""
    found, seen, waiting = {}, set(), [(root, frozenset(extras))]
    while waiting:
        name, extras = waiting.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            package = distribution(name)
        except PackageNotFoundError:  # a requirement of an extra that is not installed
            continue
        found[name] = Version(package.version).public
        if name != "torch":
            waiting += [(canonicalize_name(need.name), frozenset(need.extras)) for need in needs(package, extras)]
    return {name: version for name, version in found.items() if name != root}


def needs(package, extras: frozenset[str]) -> list[Requirement]:
    """The requirements that hold for this Python and system, with these extras."""
    every = [Requirement(line) for line in package.requires or ()]
    return [r for r in every if r.marker is None or any(r.marker.evaluate({"extra": extra}) for extra in {"", *extras})]


if __name__ == "__main__":
    for name, version in sorted(versions("rlaif-jax", {"dev"}).items()):
        print(f"{name}=={version}")
