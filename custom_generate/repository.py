"""Write ReVisiT as a repository of the Hugging Face Hub that works by itself: `nox -s hub`.

Transformers copies `generate.py` and the modules beside it that it imports. So each module of the
package that it needs is written there, named by its dotted name with underscores, and imports the
others relatively. The kernels of `revisit.core.kernels` are left out, since they need Triton.
"""

import ast
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
SOURCES = HERE.parent / "shared" / "src"
CHECKPOINT = HERE.parent / "prerequisites" / "demo" / "qwen-tiny"
KERNELS = "revisit.core.kernels"
COPIED = "# Some releases of Transformers copy only the modules that this file imports.\n"
NO_KERNELS = '''"""The kernels for GPUs are left out of this repository: plain PyTorch decodes."""


def available(head: object) -> bool:
    return False
'''


def write(folder: Path) -> None:
    """Write the repository: its page, a base checkpoint, and `custom_generate/` with its modules.

    Raises:
        FileExistsError: something is there already.
        ValueError: a module imports the package in a way that one flat folder cannot have.
    """
    shutil.copytree(CHECKPOINT, folder, ignore=shutil.ignore_patterns("training_*"))
    shutil.copyfile(HERE / "README.md", folder / "README.md")
    code = folder / "custom_generate"
    code.mkdir()
    shutil.copyfile(HERE / "requirements.txt", code / "requirements.txt")
    generate, waiting = relative(without_try((HERE / "generate.py").read_text("utf-8")))
    written: set[str] = set()
    while module := next(iter(sorted(waiting - written)), None):
        source, more = NO_KERNELS, set[str]()
        if module != KERNELS:
            source, more = relative(file_of(module).read_text("utf-8"))
        (code / f"{flat(module)}.py").write_text(source, "utf-8")
        written.add(module)
        waiting |= more
    every = [f"from .{flat(module)} import __name__ as _\n" for module in sorted(written)]
    (code / "generate.py").write_text(f"{generate}\n\n{COPIED}{''.join(every)}", "utf-8")


def without_try(source: str) -> str:
    """The source with the imports of its `try` alone: here they cannot fail."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.Try):
            kept = [line[4:] for line in lines[node.lineno : node.handlers[0].lineno - 1]]
            lines[node.lineno - 1 : node.end_lineno] = kept
    return "\n".join(lines) + "\n"


def relative(source: str) -> tuple[str, set[str]]:
    """The source with the package's imports made relative, and the modules that it imports."""
    lines = source.splitlines()
    modules: set[str] = set()
    nodes = list(ast.walk(ast.parse(source)))
    imports = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    for node in sorted(imports, key=lambda node: -node.lineno):
        if is_ours(node.module or ""):
            statement, found = flat_import(node)
            lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + statement]
            modules |= found
    names = [each.name for node in nodes if isinstance(node, ast.Import) for each in node.names]
    if whole := [name for name in names if is_ours(name)]:
        raise ValueError(f"one folder has no {whole[0]}: write `from <its module> import <names>`")
    return "\n".join(lines) + "\n", modules


def is_ours(module: str) -> bool:
    return module.partition(".")[0] == "revisit"


def flat_import(node: ast.ImportFrom) -> tuple[str, set[str]]:
    """The relative statement for a `from revisit... import ...`, and the modules it imports."""
    module = node.module or ""
    if module.startswith(KERNELS):
        module = KERNELS
    elif not file_of(module).exists():  # a package: its names are modules
        modules = {f"{module}.{each.name}": each.asname or each.name for each in node.names}
        named = [f"{flat(each)} as {name}" for each, name in modules.items()]
        return f"from . import {', '.join(named)}", set(modules)
    names = [each.name + (f" as {each.asname}" if each.asname else "") for each in node.names]
    return f"from .{flat(module)} import {', '.join(names)}", {module}


def flat(module: str) -> str:
    """Its name in the folder."""
    return module.removeprefix("revisit.").replace(".", "_")


def file_of(module: str) -> Path:
    return SOURCES / f"{module.replace('.', '/')}.py"


if __name__ == "__main__":
    write(Path(sys.argv[1]))
