"""Files and object stores: reading, writing, and the meaning of their failures."""
