"""What can go wrong around a run, done on purpose, again and again, and what a verifier finds.

`fault` says what a fault is and what one try of it found; `oracle` is the project that every fault
is tried on: its backfill adds one to each row while an application adds thousands. The other
modules hold the faults, a family each, and list them in `FAULTS`; `catalogue` puts the lists
together. `test_faults` tries each a few times, `python -m tests.soak` thousands of times.
"""
