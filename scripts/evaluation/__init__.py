"""What `evaluate`, `ablate` and `reproduce` share: cells of an experiment, computed once, stored, scored and shown."""
