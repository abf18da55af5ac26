"""Sweeps over the fields of a method: which cells they ask for, and their tables, plots and contact sheets."""
