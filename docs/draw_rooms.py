"""Draw the package's rooms into docs/design.md, from the code's own imports and first lines.

    python docs/draw_rooms.py

A room is a module or a folder of the package. The list goes from the top of the house down: a
room imports only rooms below it.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "bharateo"
DESIGN = ROOT / "docs" / "design.md"
BEGIN, END = "<!-- rooms: drawn by docs/draw_rooms.py -->", "<!-- end of rooms -->"


def rooms() -> dict[str, list[Path]]:
    """Every room's name and its Python files."""
    found = {}
    for path in sorted(PACKAGE.iterdir()):
        if path.is_dir() and (path / "__init__.py").exists():
            found[f"{path.name}/"] = sorted(path.glob("*.py"))
        elif path.suffix == ".py" and path.name != "__init__.py":
            found[path.name] = [path]
    return found


def first_line(path: Path) -> str:
    """The first line of a file's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").splitlines()[0]


def imports(files: list[Path], own: str, names: set[str]) -> set[str]:
    """The rooms that a room's files import, at their top or inside functions."""
    used = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("bharateo"):
                parts = (node.module or "").split(".")
                heads = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
                used |= {f"{head}{end}" for head in heads for end in (".py", "/")} & names
    return used - {own}


def levels(graph: dict[str, set[str]]) -> list[list[str]]:
    """Rooms by height: the lowest import nothing, each other sits just above what it imports."""
    height: dict[str, int] = {}

    def measure(room: str) -> int:
        if room not in height:
            height[room] = 1 + max((measure(below) for below in graph[room]), default=-1)
        return height[room]

    for room in graph:
        measure(room)
    return [
        sorted(room for room in graph if height[room] == level)
        for level in range(max(height.values()), -1, -1)
    ]


def direct(graph: dict[str, set[str]], room: str) -> list[str]:
    """What a room imports, less what it also reaches through another of its imports."""

    def reach(start: str) -> set[str]:
        return graph[start] | {far for near in graph[start] for far in reach(near)}

    through = {far for near in graph[room] for far in reach(near)}
    return sorted(graph[room] - through)


def picture() -> str:
    """The drawing: one block of text."""
    found = rooms()
    graph = {room: imports(files, room, set(found)) for room, files in found.items()}
    lines = ["```"]
    for level in levels(graph):
        for room in level:
            below = ", ".join(name.rstrip("/") for name in direct(graph, room)) or "nothing"
            summary = first_line(found[room][0]).rstrip(".")
            lines.append(f"{room:<15} {summary}")
            if room.endswith("/"):
                names = " ".join(path.name for path in found[room] if path.name != "__init__.py")
                lines.append(f"{'':<15}   {names}")
            lines.append(f"{'':<15}   on {below}")
        lines.append("-" * 96)
    return "\n".join([*lines[:-1], "```"])


def redrawn(text: str) -> str:
    """``docs/design.md`` with the drawing of today."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{picture()}\n{END}{after}"


if __name__ == "__main__":
    DESIGN.write_text(redrawn(DESIGN.read_text()))
