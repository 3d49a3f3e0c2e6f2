"""Files and object stores: reading, writing, and what their failures mean."""
