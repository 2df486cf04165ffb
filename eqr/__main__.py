"""``python -m eqr``: the command."""

from eqr.cli.main import main

if __name__ == "__main__":
    main()
