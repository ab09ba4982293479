"""python -m jaxcls.config is jaxcls/describe.py: a config imports nothing that stands above it."""

import runpy

if __name__ == "__main__":
    runpy.run_module("jaxcls.describe", run_name="__main__", alter_sys=True)
