"""The entry point: errors made on purpose become one line, not a traceback."""

from __future__ import annotations

import os
import sys
import time

from tasklora.errors import InterruptedRun, TaskLoraError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line.

    Exit codes: 0 done; 2 something was wrong with what was given (one line on standard error says what); 130
    interrupted. ``TASKLORA_DEBUG=1`` shows tracebacks.
    """
    from tasklora.cli.app import app

    try:
        app()
    except (TaskLoraError, OSError) as error:  # an OSError that got here: disk full, file removed, permission
        if os.environ.get("TASKLORA_DEBUG"):
            raise
        if int(os.environ.get("RANK", "0")) > 0:
            time.sleep(10.0)  # the main process may have the same to say; the launcher then ends this one
        from rich.console import Console
        from rich.markup import escape

        interrupted = isinstance(error, InterruptedRun)
        label = "[yellow]interrupted[/yellow]" if interrupted else "[red]error[/red]"
        message = " ".join(str(error).removeprefix("interrupted ").split())
        Console(stderr=True).print(f"[bold]{label}[/bold] {escape(message)}", highlight=False, soft_wrap=True)
        sys.exit(EXIT_INTERRUPTED if interrupted else EXIT_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
