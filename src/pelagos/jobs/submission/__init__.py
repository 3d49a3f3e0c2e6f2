"""Submitted runs: the durable record of each, the code shipped with it, and the reaction to failure.

A record needs no server: it is a numbered sequence of small objects next to the run's data, in a
directory or an object store, and outlives every cluster that the run was on.
"""
