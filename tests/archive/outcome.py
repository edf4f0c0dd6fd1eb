"""The outcome: a line for each check, and how many failed."""

import sys
import time
from contextlib import contextmanager


class Outcome:
    def __init__(self):
        self.passed, self.failed, self.left_out = 0, [], []
        self.started = time.monotonic()
        self.place = ""

    @contextmanager
    def within(self, place):
        """Checks of one place. Whatever goes wrong in it besides is a failure, and the next place goes on."""
        self.place = place
        try:
            yield
        except Exception as error:
            self.check("goes to its end", f"{type(error).__name__}: {error}")
        finally:
            self.place = ""

    def check(self, what, wrong=""):
        """A check is right if there is nothing wrong. Only the first lines of what is wrong are printed."""
        line = f"{self.place}: {what}" if self.place else what
        if wrong:
            self.failed.append(line)
            shown = "\n      ".join(str(wrong).strip().splitlines()[:12])
            print(f"FAIL  {line}: {shown[:2000]}", flush=True)
        else:
            self.passed += 1
            print(f"ok    {line}", flush=True)
        return not wrong

    def leave_out(self, what, why):
        self.left_out.append(what)
        print(f"left out  {what}: {why}", flush=True)

    def finish(self):
        took = time.monotonic() - self.started
        print(f"{self.passed} passed, {len(self.failed)} failed, {len(self.left_out)} skipped", flush=True)
        print(f"{took:.0f} s", file=sys.stderr)
        return 1 if self.failed else 0


def ended(command, code=0):
    """What is wrong with a command that should have ended with this exit code."""
    if command.code == code:
        return ""
    return f"exit code {command.code} instead of {code}: {command.errors.strip() or command.output.strip()}"


def without(text, *parts):
    """What is wrong with a text that should have these parts."""
    missing = [part for part in parts if part not in text]
    return f"{missing[0]!r} is not in: {text.strip() or 'nothing'}" if missing else ""


def unequal(wanted, found):
    return "" if wanted == found else f"{found!r:.600} instead of {wanted!r:.600}"
