"""Files for the services around a cluster."""
