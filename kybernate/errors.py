"""Every error that Kybernate raises on purpose, as one tree.

    KybernateError
    ├── InvalidError          the input is wrong; the message says what, which and what to do      exit 2
    ├── NotFoundError         no such workload, instance, file                                     exit 4
    ├── RefusedError          a step is not possible now; nothing was changed                      exit 20
    ├── DeadlineError         something outside did not answer in time                             exit 22
    ├── ExternalError         something outside failed (CRIU, runc, containerd, the kernel)        exit 23
    └── StateLostError        a state that should exist is gone or damaged                         exit 24

An error's docstring is its message: `{fields}` are filled from the keyword arguments that it is raised with, and are
attributes of the error. Rooms add their own leaves below these six, beside the code that raises them.
"""

from __future__ import annotations

import inspect
from typing import Any, ClassVar


class KybernateError(Exception):
    """{message}"""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str = "", **fields: Any) -> None:
        fields.setdefault("message", message)
        self.fields = fields
        super().__init__(inspect.cleandoc(type(self).__doc__ or "{message}").replace("\n", " ").format(**fields))

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["fields"][name]
        except KeyError:
            raise AttributeError(name) from None


class InvalidError(KybernateError):
    """{message}"""

    exit_code = 2


class NotFoundError(KybernateError):
    """{message}"""

    exit_code = 4


class RefusedError(KybernateError):
    """{message}"""

    exit_code = 20


class DeadlineError(KybernateError):
    """{message}"""

    exit_code = 22


class ExternalError(KybernateError):
    """{message}"""

    exit_code = 23


class StateLostError(KybernateError):
    """{message}"""

    exit_code = 24
