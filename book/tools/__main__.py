"""``python -m book.tools build|chapter``; see their ``--help``."""

from book.tools.build import main

main()
