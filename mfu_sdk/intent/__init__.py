"""What work that has not run yet may be expected to reach: a model, a GPU type, a batch and a parallel layout."""
