"""Recipes of the papers' main experiments, at full size on published weights and at toy size on the embedded domain."""
