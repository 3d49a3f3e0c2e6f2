"""Single pictures of reports: physics, stability, range tests of the learning rate."""
