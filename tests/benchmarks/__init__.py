"""Measurements, run by hand: they take minutes and have no pass mark."""
