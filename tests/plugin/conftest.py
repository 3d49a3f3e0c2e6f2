"""The user's package is imported by the processes that the tests start, and not by pytest."""

collect_ignore_glob = ["ocean_lab/*"]
