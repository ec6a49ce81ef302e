"""`python -m tasks.cli`: the command line without an installed script."""

from tasks.cli import main

main()
