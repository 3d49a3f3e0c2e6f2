"""Runs as the verbs see them: found by name, here or on a cluster, and followed alike."""
