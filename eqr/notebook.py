"""A chapter as a notebook: executed with other parameters, and the cell that says how it was made.

Serves ``eqr notebook`` and the book's build; :func:`provenance` is the last cell of every chapter.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from IPython.display import HTML
from jupyter_client.manager import AsyncKernelManager

from eqr import PROJECT, store
from eqr.settings import ConfigError, UserError, nearest

# One thread: results then do not depend on the machine's cores, nor do two kernels side by side
# wait for each other. With the backend that tests set, a chapter would have no pictures.
KERNEL = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
KERNEL |= {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


class NotebookError(UserError):
    """A notebook did not run through; the message names the cell and where to read on."""


class ChapterKernel(AsyncKernelManager):
    """A kernel that draws into the notebook and is ended by a message alone."""

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

    Raises:
        ConfigError: no such notebook or parameter, or ``out`` is the notebook itself.
        NotebookError: a cell failed; the partial notebook stays beside ``out`` for reading.
    """
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

    if not notebook.is_file():
        raise ConfigError(f"{notebook}: no such notebook")
    if out.resolve() == notebook.resolve():
        raise ConfigError(f"{out}: is the notebook itself; name another file for the executed copy")
    known = papermill.inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:  # papermill itself only warns
            raise ConfigError(f"{notebook}: has no parameter {name!r}; {nearest(name, known)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f"{out.stem}.partial.ipynb")
    try:
        papermill.execute_notebook(
            str(notebook),
            str(temporary),
            parameters=dict(parameters),
            cwd=str(PROJECT),
            progress_bar=False,
            log_output=False,
            kernel_name="python3",
            kernel_manager_class=ChapterKernel,
            store_widget_state=False,  # a page has no kernel: its widgets would not answer
            extra_arguments=["--IPKernelApp.log_level=40"],  # it warns that it is reached over TCP
        )
    except papermill.PapermillExecutionError as error:
        where = f"{notebook.name}: cell {error.exec_count} failed with {error.ename}"
        raise NotebookError(f"{where}: {error.evalue}\n  read it in {temporary}") from error
    except (DeadKernelError, NoSuchKernel) as error:
        raise NotebookError(f"{notebook.name}: its kernel died or is missing: {error}") from error
    temporary.replace(out)
    return out


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
