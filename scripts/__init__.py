"""The command line: thin, and generated from the dataclasses of the library."""
