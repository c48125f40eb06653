"""Tries each fault of tests/faults hundreds of times, and says what it found.

`trying` lets processes try the faults side by side, `results` holds what they found and writes it
to docs/soak.json, `table` draws it for the terminal and for the README.
"""
