"""`python -m maintd`: how the supervisor starts its children with the very interpreter it runs on itself."""

from maintd.cli import main

main()
