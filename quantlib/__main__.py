"""python -m quantlib COMMAND …, or quantlib-lessons COMMAND …: for models and for the lessons. Start at :func:`main`."""

import sys
from importlib import import_module

COMMANDS = {
    "quantize": ("commands.quantize", "a model's linear layers in few bits, as a folder that other tools load"),
    "eval": ("commands.evaluate", "perplexity of a model, float or quantized, and how far it is from another"),
    "inspect": ("commands.inspect", "what a quantized folder holds, and what is suspicious in it"),
    "report": ("commands.report", "the book's table for a model of yours: a few methods, one page"),
    "record": ("commands.record", "run the slow experiments that are out of date, and record what the pages print"),
    "table": ("commands.table", "print part 7's table of methods, as it was recorded"),
    "bench": ("commands.bench", "print the recorded speeds of this machine's kernels"),
    "check-env": ("commands.check_env", "say what this machine has of what the lessons need"),
    "student": ("commands.student", "write the pages as notebooks without the solutions of their exercises"),
    "fetch": ("zoo.zoo", "fetch the lesson models and texts now"),
    "build": ("kernels.cpu.compiled", "compile the optional C++ kernels for this machine"),
}


def main(words: list[str]) -> int:
    """Runs the command that the first word names with the others; 2, with the list, if it is none (0 for --help)."""
    if not words or words[0] not in COMMANDS:
        asked = words[:1] in (["-h"], ["--help"])
        lines = [f"  {name:10} {what}" for name, (_, what) in COMMANDS.items()]
        usage = "usage: python -m quantlib COMMAND …, and COMMAND --help"
        print(usage, *lines, sep="\n", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    command = import_module(f"quantlib.{COMMANDS[words[0]][0]}")
    sys.argv = [f"python -m quantlib {words[0]}", *words[1:]]
    return command.main() or 0


def script() -> int:
    """The script quantlib-lessons."""
    return main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(script())
