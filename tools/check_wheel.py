"""Builds the wheel and checks that data files travel with it: suites, the demo's recipe and rows, the type marker."""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src"


def main() -> None:
    """Exit with 1 and the missing names if a file of the package is not in the wheel."""
    with tempfile.TemporaryDirectory() as scratch:
        subprocess.run(
            [sys.executable, "-m", "build", "--wheel", "--outdir", scratch, str(ROOT)],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        (wheel,) = Path(scratch).glob("*.whl")
        packed = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "tasklora").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted.add("tasklora_lm_eval.py")  # an entry point of torch: without it `import torch` would fail
    missing = sorted(wanted - packed)
    if missing:
        sys.exit("missing from the wheel: " + ", ".join(missing))
    print(f"{wheel.name}: all {len(wanted)} files of the package are in it")


if __name__ == "__main__":
    main()
