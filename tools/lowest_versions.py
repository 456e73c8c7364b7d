"""Prints the lowest version of each dependency that pyproject.toml admits, as pip requirements.

Used by ``make test-lowest``; a lower bound that is not tested is a guess.
"""

import re
import sys
from pathlib import Path

import tomllib

PROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"
NEEDED_TO_TEST = ("pytest", "hypothesis")  # pytest-xdist among them


def lowest(requirement: str) -> str:
    """Return ``name==lower`` of a requirement ``name>=lower,…``."""
    match = re.match(r"([A-Za-z0-9_.-]+)\s*>=\s*([0-9.]+)", requirement)
    if match is None:
        sys.exit(f"{requirement!r} has no lower bound")
    name, version = match.groups()
    return f"{name}=={version if version.count('.') else version + '.0'}"


def main() -> None:
    """Print the requirements."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for requirement in project["dependencies"]:
        print(lowest(requirement))
    for requirement in project["optional-dependencies"]["dev"]:
        if requirement.startswith(NEEDED_TO_TEST):
            print(lowest(requirement))


if __name__ == "__main__":
    main()
