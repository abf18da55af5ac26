"""Art and weights that ship with the package; read them with ``importlib.resources``."""
