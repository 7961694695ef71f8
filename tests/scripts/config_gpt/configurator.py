"""Override the globals of train.py: a config file first, then --key=value."""

import sys
from ast import literal_eval

for arg in sys.argv[1:]:
    if not arg.startswith("--"):
        print(f"Overriding config with {arg}:")
        with open(arg, encoding="utf-8") as config_file:
            print(config_file.read())
        with open(arg, encoding="utf-8") as config_file:
            exec(config_file.read())
        continue
    key, _, value = arg[2:].partition("=")
    if key not in globals():
        raise ValueError(f"Unknown config key: {key}")
    try:
        attempt = literal_eval(value)
    except (SyntaxError, ValueError):
        attempt = value  # a plain string
    assert type(attempt) is type(globals()[key]), f"{key} has another type"
    print(f"Overriding: {key} = {attempt}")
    globals()[key] = attempt
