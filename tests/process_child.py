"""Runs a script as `python SCRIPT ARGUMENTS...` would, in a process that is there already: see processes.py."""

import os
import runpy
import sys

sys.argv, environment, *files = globals()["JOB"]  # [script, argument, ...], variables, files for stdout and stderr
os.environ.clear()
os.environ |= environment
for number, file in enumerate(files, start=1):
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(handle, number)
    os.close(handle)
runpy.run_path(sys.argv[0], run_name="__main__")
