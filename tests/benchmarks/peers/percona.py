"""Percona's pt-online-schema-change: a copy of the table, in which the column is computed."""

from __future__ import annotations

import subprocess

from tests.benchmarks.peers.common import Address, main, tell

ALTER = "ADD COLUMN computed_name VARCHAR(200) AS (CONCAT(first, ' ', last)) STORED"


def schema_change(address: Address) -> None:
    command = [
        "pt-online-schema-change",
        *("--execute", "--alter", ALTER),
        *("--recursion-method", "none", "--no-check-replication-filters", "--charset", "utf8mb4"),
        f"h={address.host},P={address.port},u={address.user},p={address.password}"
        f",D={address.database},t=people",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            if line.startswith("Creating new table"):  # it has connected and looked around
                tell("started")
            text += line
    if process.returncode != 0:
        raise RuntimeError(text)
    tell("finished")


if __name__ == "__main__":
    main({"schema_change": schema_change})
