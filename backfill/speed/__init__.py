"""How fast a run goes: how many rows next, how long to rest, and whether it may go on."""
