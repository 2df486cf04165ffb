"""The many-seed studies: planned, run, kept one file a cell, and judged."""
