"""python -m quantlib COMMAND …: record, bench, check-env, fetch or build."""

import sys
from importlib import import_module

COMMANDS = {
    "record": ("commands.record", "run the slow experiments that are out of date, and record what the pages print"),
    "bench": ("commands.bench", "print the recorded speeds of this machine's kernels"),
    "check-env": ("commands.check_env", "say what this machine has of what the lessons need"),
    "fetch": ("zoo.zoo", "fetch the lesson models and texts now"),
    "build": ("kernels.cpu.compiled", "compile the optional C++ kernels for this machine"),
}


def main(words: list[str]) -> int:
    """Runs the command that the first word names with the others; 2, with the list, if it is none."""
    if not words or words[0] not in COMMANDS:
        lines = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
        print("usage: python -m quantlib COMMAND …", *lines, sep="\n", file=sys.stderr)
        return 2
    command = import_module(f"quantlib.{COMMANDS[words[0]][0]}")
    sys.argv = [f"python -m quantlib {words[0]}", *words[1:]]
    return command.main() or 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
