"""Running verbs on a Ray cluster that is there already, as jobs of its Jobs API. Imports no Ray."""
