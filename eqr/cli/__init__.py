"""The ``eqr`` command: options, output and error lines only."""
