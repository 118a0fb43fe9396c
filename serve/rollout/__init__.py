"""A new version beside the one that serves: who gets which, how they compare, and what comes of it."""
