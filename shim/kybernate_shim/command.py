"""runc's command line, as far as the hook has to understand it. Pure."""

GLOBALS_WITH_VALUE = ("--root", "--log", "--log-format", "--criu", "--rootless")
WITH_VALUE = {
    "create": ("--bundle", "-b", "--console-socket", "--pid-file", "--preserve-fds"),
    "restore": (
        "--bundle", "-b", "--console-socket", "--pid-file", "--image-path", "--work-path", "--manage-cgroups-mode",
        "--empty-ns", "--lsm-profile", "--lsm-mount-context",
    ),
    "ps": ("--format", "-f"),
    "update": ("--resources", "-r"),
    "exec": (
        "--console-socket", "--cwd", "--env", "-e", "--user", "-u", "--additional-gids", "-g", "--process", "-p",
        "--pid-file", "--process-label", "--apparmor", "--cap", "-c", "--preserve-fds", "--cgroup",
    ),
}  # fmt: skip


class Command:
    """`runc [globals] verb [options] arguments`; `options` keep their order and spelling."""

    def __init__(self, before: list[str], verb: str, options: list[str], arguments: list[str]) -> None:
        self.globals, self.verb, self.options, self.arguments = before, verb, options, arguments

    def option(self, *names: str) -> str | None:
        for name in names:
            for index, word in enumerate(self.options):
                if word == name:
                    return self.options[index + 1] if index + 1 < len(self.options) else None
                if word.startswith(name + "="):
                    return word[len(name) + 1 :]
        return None

    def has(self, *names: str) -> bool:
        return any(word in names or word.partition("=")[0] in names for word in self.options)

    def global_option(self, name: str) -> str | None:
        return Command([], "", self.globals, []).option(name)

    @property
    def container(self) -> str:
        return self.arguments[0] if self.arguments else ""


def parse(words: list[str]) -> Command:
    index = _skip_options(words, 0, GLOBALS_WITH_VALUE)
    verb = words[index] if index < len(words) else ""
    end = _skip_options(words, index + 1, WITH_VALUE.get(verb, ()))
    return Command(words[:index], verb, words[index + 1 : end], words[end:])


def _skip_options(words: list[str], index: int, with_value: tuple[str, ...]) -> int:
    while index < len(words) and words[index].startswith("-") and words[index] != "-":
        index += 2 if words[index] in with_value else 1
    return min(index, len(words))
