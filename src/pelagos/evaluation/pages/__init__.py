"""Reports as HTML pages, with their figures and tables."""
