"""For the tests of a project's own backfills; `plugin` makes a fixture of it."""
