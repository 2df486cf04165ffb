"""A chapter as a notebook: executed with other parameters, and the cell that says how it was made.

Serves ``eqr notebook`` and the book's build; :func:`provenance` is the last cell of every chapter.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from eqr import store
from eqr.data import PROJECT
from eqr.settings import ConfigError, nearest

#: Where the environment names another backend, as for tests, a chapter would have no pictures.
INLINE = "module://matplotlib_inline.backend_inline"

SHOWN = 12  # runs named in a chapter's last lines; the rest are counted


class NotebookError(RuntimeError):
    """A notebook did not run through; the message names the cell and where to read on."""


def check_parameters(notebook: Path, parameters: Mapping[str, Any]) -> None:
    """Refuse parameters that the notebook does not declare: papermill itself only warns.

    Raises:
        ConfigError: there is no such notebook, or it has no such parameter; suggests the near miss.
    """
    from papermill import inspect_notebook

    if not notebook.is_file():
        raise ConfigError(f"{notebook}: no such notebook")
    known = inspect_notebook(str(notebook))
    for name in parameters:
        if name not in known:
            raise ConfigError(f"{notebook}: has no parameter {name!r}; {nearest(name, known)}")


def execute(notebook: Path, out: Path, parameters: Mapping[str, Any]) -> Path:
    """Execute a notebook with other parameters; ``out`` appears complete or not at all.

    Raises:
        ConfigError: an unknown parameter, or ``out`` is the notebook itself.
        NotebookError: a cell failed; the partial notebook stays beside ``out`` for reading.
    """
    check_parameters(notebook, parameters)
    if out.resolve() == notebook.resolve():
        raise ConfigError(f"{out}: is the notebook itself; name another file for the executed copy")
    import papermill
    from jupyter_client.kernelspec import NoSuchKernel
    from nbclient.exceptions import DeadKernelError

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
            kernel_manager_class=kernel_manager(),
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


def kernel_manager() -> type:
    """The class that starts and ends a chapter's kernel."""
    from jupyter_client.manager import AsyncKernelManager

    class ChapterKernel(AsyncKernelManager):
        """A kernel that draws into the notebook and is ended by a message alone."""

        async def start_kernel(self, **options: Any) -> None:
            # One thread: results then do not depend on the machine's cores, nor do two kernels
            # side by side wait for each other.
            one = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "MPLBACKEND": INLINE}
            environment = options.pop("env", os.environ) | one
            await super().start_kernel(env=environment, **options)

        async def _async_interrupt_kernel(self) -> None:
            # Jupyter interrupts a kernel before it asks it to end. Papermill's last question, the
            # kernel's info, may not be over by then: it answers before it leaves its handler, and
            # reports the interrupt as an error. Nothing runs any more that would need it.
            if not self.shutting_down:
                await super()._async_interrupt_kernel()

    return ChapterKernel


def provenance(chapter: str, **parameters: Any) -> Any:
    """How the numbers of this notebook were made: the last cell of a chapter.

    Args:
        chapter: its name, as in ``"plan"``.
        parameters: with which it is executed, all of them.

    Returns:
        What Jupyter shows: the command that executes it again, commit, versions and machine, the
        processor time of this kernel, and every run that it has read from the store.
    """
    from IPython.display import HTML

    made, runs = store.provenance(), store.USED
    given = [f"{key}={json.dumps(value).strip(chr(34))}" for key, value in parameters.items()]
    words = ["eqr", "notebook", f"notebooks/{chapter}.ipynb", f"build/{chapter}.ipynb"]
    command = shlex.join([*words, *(word for pair in given for word in ("-p", pair))])
    threads = f"{made['threads']} thread{'s' * (made['threads'] != 1)}"
    now = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    facts = {
        "Executed": f"{now}, in {time.process_time():.0f} s of processor time",
        "Commit": named([made["commit"]]),
        "Versions": ", ".join(f"{key} {value}" for key, value in made["versions"].items()),
        "Machine": escape(f"{made['hardware']}, {threads}"),
        "Data": named(sorted({data for data in runs.values() if data})),
        "Runs read": named(sorted(runs)) or "none: it computes all",
    }
    rows = "".join(f'<tr><th scope="row">{k}</th><td>{v}</td></tr>' for k, v in facts.items() if v)
    return HTML(
        '<details class="eqr-origin"><summary>How the numbers on this page were made</summary>'
        "<p>This executes the chapter again, with the same parameters:</p>"
        f"<pre>$ {escape(command)}</pre><table>{rows}</table>"
        "<p><code>eqr results show RUN</code> prints what a run was made from.</p></details>"
    )


def named(items: Sequence[str]) -> str:
    """Names in code style, the first dozen of them; the rest are counted.

    >>> named(["a", "<b>"])
    '<code>a</code> <code>&lt;b&gt;</code>'
    """
    shown = " ".join(f"<code>{escape(item)}</code>" for item in items[:SHOWN])
    return shown + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")
