"""Install steerdiff: the folders at the root become ``steerdiff.<folder>`` through the links in ``src/steerdiff``."""

from pathlib import Path

from setuptools import find_packages, setup

PARTS = ("models", "samplers", "guidance", "methods", "train", "scripts", "assets")
package_dir, packages = {"": "src"}, find_packages("src")
if not all(Path("src/steerdiff", part, "__init__.py").is_file() for part in PARTS):  # no links here: map the folders
    for part in PARTS:
        package_dir[f"steerdiff.{part}"] = part
        packages += [f"steerdiff.{part}", *(f"steerdiff.{part}.{sub}" for sub in find_packages(part))]

setup(package_dir=package_dir, packages=packages)
