"""A model of the protocol, and a machine that drives the real runner against it."""
