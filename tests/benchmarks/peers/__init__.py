"""How people fill a column without the project, each written and tuned as its users would.

Each module is run as a process, `python -m tests.benchmarks.peers.MODULE WAY URL`, and tells when
its work begins, with the connection open, and when it ends.
"""
