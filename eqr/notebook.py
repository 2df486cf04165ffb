"""A chapter as a notebook: executed with other parameters, and the cell that says how it was made.

Serves ``eqr notebook`` and the book's build; :func:`provenance` is the last cell of every chapter.
"""

from __future__ import annotations

import ast
import json
import os
import shlex
import sys
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from IPython.display import HTML
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager

from eqr import PROJECT, store
from eqr.files import beside, read_json, target
from eqr.settings import ConfigError, UserError, nearest

# One thread: results then do not depend on the machine's cores, nor do two kernels side by side
# wait for each other. With the backend that tests set, a chapter would have no pictures.
KERNEL = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
KERNEL |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


#: What the profile of a chapter, and of the records that it reads, can be.
CHOICES = {"profile": ("smoke", "laptop"), "records": ("smoke", "laptop", "paper")}


class NotebookError(UserError):
    """A notebook did not run through; the message names the cell and where to read on."""


class ChapterKernel(AsyncKernelManager):
    """A kernel of this environment that draws into the notebook and is ended by a message alone."""

    @property
    def kernel_spec(self) -> KernelSpec:
        # By path: a kernel of the same name may lie earlier on JUPYTER_PATH.
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=command, display_name="Python 3", language="python")

    async def start_kernel(self, **options: Any) -> None:
        await super().start_kernel(env=options.pop("env", os.environ) | KERNEL, **options)

    async def _async_interrupt_kernel(self) -> None:
        # Jupyter interrupts a kernel before it asks it to end. Papermill's last question, the
        # kernel's info, may not be over by then: the kernel answers before it leaves its handler,
        # and reports the interrupt as an error. Nothing runs any more that would need it.
        if not self.shutting_down:
            await super()._async_interrupt_kernel()


def execute(notebook: Path, out: Path, parameters: Mapping[str, Any]) -> Path:
    """Execute a notebook with other parameters; ``out`` appears complete or not at all.

    Args:
        parameters: as values, or as text that is read as the notebook's own value suggests.

    Raises:
        ConfigError: no such notebook or parameter, a value that does not fit, or ``out`` is the
            notebook itself or another source.
        NotebookError: a cell failed; the partial notebook stays beside ``out`` for reading.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    known = own_parameters(notebook)
    for name in parameters:
        if name not in known:  # papermill itself only warns
            raise ConfigError(f"{notebook}: has no parameter {name!r}; {nearest(name, known)}")
    given = {name: fitting(name, text, known[name]) for name, text in parameters.items()}
    if out.exists() and out.samefile(notebook):
        raise ConfigError(f"{out}: is the notebook itself; name another file for the executed copy")
    real = target(out, mark=b'"papermill"')  # in every executed copy, and in no source
    partial = real.with_name(f"{real.stem}.partial.ipynb")
    with beside(real) as temporary:
        try:
            # papermill fills in what stands in braces in a path.
            places = (str(p).replace("{", "{{").replace("}", "}}") for p in (notebook, temporary))
            papermill.execute_notebook(
                *places,
                parameters=given,
                cwd=str(PROJECT),
                progress_bar=False,
                log_output=False,
                kernel_name="python3",
                language="python",  # of a notebook that does not say it
                kernel_manager_class=ChapterKernel,
                store_widget_state=False,  # a page has no kernel: its widgets would not answer
                extra_arguments=["--IPKernelApp.log_level=40"],  # it warns that TCP reaches it
            )
        except papermill.PapermillExecutionError as error:
            temporary.replace(partial)
            where = f"{notebook.name}: cell {error.exec_count} failed with {error.ename}"
            raise NotebookError(f"{where}: {error.evalue}\n  read it in {partial}") from error
        except DeadKernelError as error:
            raise NotebookError(f"{notebook.name}: its kernel died: {error}") from error
        temporary.replace(real)
    return out


def own_parameters(notebook: Path) -> dict[str, Any]:
    """The parameters of a notebook, with their own values.

    Raises:
        ConfigError: there is no such notebook, or it is none.
    """
    import nbformat

    if not notebook.is_file():
        raise ConfigError(f"{notebook}: no such notebook")
    content = read_json(notebook)
    try:
        nbformat.validate(nbformat.from_dict(content))
        tagged = [c for c in content["cells"] if "parameters" in c["metadata"].get("tags", ())]
        code = "".join("".join(cell["source"]) for cell in tagged[:1])
        lines = [line for line in ast.parse(code).body if isinstance(line, ast.Assign)]
        return {line.targets[0].id: literal(line.value) for line in lines}
    except (nbformat.ValidationError, ValueError, LookupError, TypeError, AttributeError,
            SyntaxError, AssertionError) as error:  # fmt: skip
        why = f"{str(error).strip():.100}".partition("\n")[0]
        raise ConfigError(f"{notebook}: is no notebook ({why}); restore it") from error


def literal(node: ast.expr) -> Any:
    """The value that a notebook gives a parameter; None, which fits all, where it computes it."""
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def fitting(name: str, given: Any, own: Any) -> Any:
    """A parameter's value (or the text of one), if it is of the same kind as the notebook's own.

    A whole number is at least 1, another at least 0; or as small as the notebook's own.

    >>> fitting("noise", ".5", 0.1), fitting("depths", "[1, 2]", [4]), fitting("x", "None", None)
    (0.5, [1, 2], None)
    """
    value = given
    if isinstance(given, str) and not isinstance(own, str):
        try:
            value = ast.literal_eval({"true": "True", "false": "False"}.get(given, given))
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            value = given if own is None else ...
    elif isinstance(given, str):
        value = given.strip()
    if isinstance(own, float) and type(value) is int:
        value = float(value)
    if own is not None and type(value) is not type(own):
        kinds = {bool: "true or false", int: "a whole number", float: "a number", list: "a list"}
        raise ConfigError(f"{name} = {given!s:.60} must be {kinds.get(type(own), 'text')}")
    if isinstance(own, list):
        like = own[0] if own else None
        return [fitting(name, part, like) for part in value]
    if own in CHOICES.get(name, ()) and value not in CHOICES[name]:
        raise ConfigError(f"{name} = {value!r:.60} must be one of {', '.join(CHOICES[name])}")
    if isinstance(own, int | float) and not isinstance(own, bool):
        least = min(own, 1 if isinstance(own, int) else 0)
        if not least <= value < 2**53:
            raise ConfigError(f"{name} = {value!s:.60} must be at least {least}, and finite")
    return value


def provenance(chapter: str, **parameters: Any) -> HTML:
    """How the numbers of this notebook were made: the last cell of a chapter.

    Args:
        chapter: its name, as in ``"plan"``.
        parameters: all of those with which it is executed.
    """
    made, runs = store.provenance(), store.USED
    given = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in parameters.items()]
    words = ["eqr", "notebook", f"notebooks/{chapter}.ipynb", f"build/{chapter}.ipynb"]
    command = shlex.join([*words, *(word for pair in given for word in ("-p", pair))])
    versions = ", ".join(f"{key} {value}" for key, value in made["versions"].items())
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    facts = {
        "Executed": f"{now}, in {time.process_time():.0f} s of processor time",
        "Commit": f"{made['commit']}, with {versions}",
        "Machine": f"{made['hardware']}, threads: {made['threads']}",
        "Data": " ".join(sorted({data for data in runs.values() if data})) or "none",
        "Runs read": " ".join(sorted(runs)) or "none: it computes all",
    }
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td><code>{escape(text)}</code></td></tr>'
        for name, text in facts.items()
    )
    return HTML(
        '<details class="eqr-origin"><summary>How the numbers on this page were made</summary>'
        "<p>This executes the chapter again, with the same parameters:</p>"
        f"<pre>$ {escape(command)}</pre><table>{rows}</table>"
        "<p><code>eqr results show RUN</code> prints what a run was made from.</p></details>"
    )
