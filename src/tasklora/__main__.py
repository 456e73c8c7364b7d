"""``python -m tasklora`` is the command ``tasklora``."""

from tasklora.cli import main

main()
