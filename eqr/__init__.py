"""Equilibrium Reasoners, checked: tasks, operator, training, rollouts, selection and their records.

Read the modules in the order the data flows: ``task``, ``sudoku``, ``maze``, ``miniarc`` →
``data`` → ``model`` → ``rollout`` → ``select``, ``evaluate`` → ``train`` → ``checkpoint`` →
``experiments`` → ``cost``, ``study_rows``, ``studies``, ``study_cells``, ``study_files``,
``study_run`` → ``figures``, ``explore``, ``export``, ``play`` → ``graph``, ``runner``, ``pages``,
``book``, ``pdf``.
"""

__version__ = "0.1.0"
