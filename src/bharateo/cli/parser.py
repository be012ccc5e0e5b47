"""A parser that suggests the nearest right word for a wrong one."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """``argparse``'s, whose errors name the verb, option or choice that was probably meant."""

    _words: Sequence[str] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As ``argparse``'s, which every other way of parsing calls."""
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print the usage of what was asked for, the error and a suggestion; exit with 2."""
        verb = next((verb for word in self._words if (verb := self._verbs().get(word))), None)
        if verb and message.startswith("unrecognized arguments"):  # the verb knows its options
            verb.error(message)
        hints = [*self._near_choices(message), *self._near_options()]
        super().error(message + "".join(f"\ndid you mean {hint}?" for hint in hints))

    def _near_choices(self, message: str) -> Iterator[str]:
        if wrong := re.search(r"invalid choice: '([^']*)'", message):
            words = [str(word) for action in self._actions for word in action.choices or ()]
            yield from difflib.get_close_matches(wrong[1], words, n=1)

    def _near_options(self) -> Iterator[str]:
        """What options that do not exist, not even shortened, are near to."""
        known = list(self._option_string_actions)
        for word in self._words:
            option = word.partition("=")[0]
            if option.startswith("--") and not any(name.startswith(option) for name in known):
                for near in difflib.get_close_matches(option, known, n=1):
                    yield f"{near} (not {option})"

    def _verbs(self) -> dict[str, Parser]:
        return {
            name: verb
            for action in self._actions
            if isinstance(action, argparse._SubParsersAction)
            for name, verb in action.choices.items()
        }
