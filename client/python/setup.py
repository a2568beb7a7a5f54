"""Generates the stubs as part of the build; all else is in pyproject.toml."""

import pathlib
import subprocess
import sys

import setuptools

GENERATE = pathlib.Path(__file__).resolve().parent / "generate"

# Before setup() looks for packages, which are what this makes.
subprocess.run([sys.executable, str(GENERATE)], check=True)
setuptools.setup()
