"""Named checks: a function that is marked runs once, and fails by an exception."""

import traceback
from collections.abc import Callable

ALL: list[Callable] = []


def check(function: Callable) -> Callable:
    """Marks a function as a check. Its name is the behaviour that it holds."""
    ALL.append(function)
    return function


def raises(kind: type[Exception], call: Callable, *needles: str) -> Exception:
    """The error that the call ends with; it must be of that kind and say every needle."""
    try:
        call()
    except kind as error:
        for needle in needles:
            assert needle.lower() in str(error).lower(), f"{needle!r} is not in {str(error)[:300]!r}"
        return error
    raise AssertionError(f"no {kind.__name__}")


def run(only: set[str], *arguments) -> bool:
    """Runs the checks, or those that are named; true if all of them hold."""
    failed = 0
    chosen = [function for function in ALL if not only or function.__name__ in only]
    for function in chosen:
        try:
            function(*arguments)
            print(f"ok    {function.__name__}", flush=True)
        except Exception as error:
            failed += 1
            place = traceback.extract_tb(error.__traceback__)[-1]
            print(f"FAIL  {function.__name__}: {type(error).__name__}: {str(error)[:500]} ({place.filename}:{place.lineno}: {place.line})", flush=True)
    print(f"{len(chosen) - failed} passed, {failed} failed")
    return failed == 0 and bool(chosen)
