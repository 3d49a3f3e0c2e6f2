"""Pictures of datasets, drawn without a display: still and moving, of lines, planes and volumes."""
