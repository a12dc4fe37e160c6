"""`python -m patrolscope`: the command line."""

from patrolscope.cli import main

main()
