"""How many copies of each model there should be: what is looked at, the decision, and its way to Serve."""
