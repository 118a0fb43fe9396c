"""`shoal bench`: a light load generator, what it measures of one server or of two in turn, and the page of it."""
