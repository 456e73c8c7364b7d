"""Run scripts, each in a process of its own that starts with the heavy imports done: `run_examples.py FOLDER SCRIPT …`.

Writes FOLDER/NAME.out, what the script printed, and FOLDER/NAME.rc, its exit status.
"""

import os
import runpy
import sys
import traceback
from pathlib import Path

import peft  # noqa: F401 - so that the scripts find them loaded
import transformers  # noqa: F401


def run(script: Path, folder: Path) -> int:
    """Run one script as `python SCRIPT` would, printing into a file."""
    with open(folder / f"{script.stem}.out", "w", encoding="utf-8") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    sys.argv = [str(script)]
    try:
        runpy.run_path(str(script), run_name="__main__")
    except SystemExit as error:
        return int(error.code or 0) if isinstance(error.code, int | None) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for script in map(Path, sys.argv[2:]):
        child = os.fork()
        if child == 0:
            os._exit(run(script, folder))
        _, status = os.waitpid(child, 0)
        (folder / f"{script.stem}.rc").write_text(str(os.waitstatus_to_exitcode(status)))
