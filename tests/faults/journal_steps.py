"""The journal's steps twice: as the page on architecture lists them, and as the agent's code can write them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import kybernate_agent
from kybernate_agent.instance import Verb

AGENT = Path(kybernate_agent.__file__).parent
Named = ast.AsyncFunctionDef | ast.FunctionDef | ast.ClassDef
PAGE = Path(__file__).parents[2] / "docs/design/01_ARCHITECTURE.md"


def listed() -> dict[str, list[str]]:
    """The page's table: {way: its steps in order}. A way is a verb, or a verb and where it starts from."""
    part = PAGE.read_text().split("## The journal's steps", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| ([a-zA-Z ]+) \| (`.*`) \|$", part, re.MULTILINE)
    return {way: re.findall(r"`([a-z-]+)`", steps) for way, steps in rows}


def verb_of(way: str) -> str:
    return way.split(maxsplit=1)[0]


def written() -> set[tuple[str, str]]:
    """Every (verb, step) that the code can write, found by following each verb's Stage from `verbs.do` on."""
    functions = _functions()
    return {
        (verb, step)
        for verb, body in _verbs(functions["do"])
        for step in _steps(body, functions, seen=set())
    }  # fmt: skip


def _functions() -> dict[str, Named]:
    """Functions and classes of the agent that can have a Stage, by name; the name is unique among them."""
    found: dict[str, Named] = {}
    for path in sorted(AGENT.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, Named):
                continue
            taking = _methods(node) if isinstance(node, ast.ClassDef) else [node]
            if any("stage" in _arguments(function) for function in taking) and node.name != "__init__":
                assert node.name not in found, f"two functions {node.name} take a stage"
                found[node.name] = node
    return found


def _methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [method for method in node.body if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)]


def _arguments(node: ast.AsyncFunctionDef | ast.FunctionDef) -> set[str]:
    return {argument.arg for argument in node.args.args}


def _verbs(method: ast.AST) -> Iterator[tuple[str, ast.match_case]]:
    for node in ast.walk(method):
        if isinstance(node, ast.match_case):
            assert isinstance(node.pattern, ast.MatchValue)
            assert isinstance(node.pattern.value, ast.Attribute)
            yield Verb[node.pattern.value.attr].value, node


def _steps(body: ast.AST, functions: Mapping[str, ast.AST], seen: set[str]) -> Iterator[str]:
    for node in ast.walk(body):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name == "step" and ast.unparse(node.func).split(".")[-2] == "stage":
            step = node.args[0]
            assert isinstance(step, ast.Constant), f"a step whose name is no constant: {ast.unparse(node)}"
            assert isinstance(step.value, str)
            yield step.value
        elif name in functions and name not in seen and any(ast.unparse(a).endswith("stage") for a in node.args):
            seen.add(name)
            yield from _steps(functions[name], functions, seen)
