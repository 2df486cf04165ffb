"""Equilibrium Reasoners, checked: tasks, operator, training, rollouts, selection and their records.

The core, in the order of an evening's reading: ``streams`` (where every random draw comes from),
``task`` and ``data`` (what a problem is), ``config``, ``model`` and its ``layers`` (the operator),
``optim`` and ``train``, ``checkpoint``, ``rollout`` (depth and breadth), ``select``, ``evaluate``
and ``solve``. Around it: ``tasks``, ``analysis``, ``studies``, ``viewer``, ``imports``, ``cli``.
"""

__version__ = "0.1.0"
